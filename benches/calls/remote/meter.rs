// SPDX-License-Identifier: MIT OR Apache-2.0
//! What something costs where several processes take turns: the time of it without the time in which
//! there was nothing to do for anybody, and what of that the server has used.

use std::fs;
use std::time::Instant;

use anyhow::{Context, Result};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;

/// In ns, which are instructions in the guest.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cost {
    pub total: f64,
    /// Of it, by the server's processes.
    pub server: f64,
}

/// Whose share is looked at, and whether the clock goes on by what is executed.
#[derive(Clone, Debug)]
pub struct Meter {
    pub servers: Vec<Pid>,
    /// Where it does not, there is more than one processor, and who is idle means nothing.
    pub counts_instructions: bool,
}

impl Meter {
    /// What `run` costs, with what it gives.
    pub fn around<T>(&self, run: impl FnOnce() -> Result<T>) -> Result<(T, Cost)> {
        let (idle, used) = (self.idle()?, self.used()?);
        let began = Instant::now();
        let given = run()?;
        let took = began.elapsed().as_nanos() as u64;
        let (idle, used) = (self.idle()? - idle, self.used()?.saturating_sub(used));
        let cost = Cost {
            total: took.saturating_sub(idle) as f64,
            server: used as f64,
        };
        Ok((given, cost))
    }

    /// For how long the processor had nothing to do. A clock that counts instructions leaps over that time to
    /// whatever comes next: TCP's delayed acknowledgement, the machine's disk.
    fn idle(&self) -> Result<u64> {
        if !self.counts_instructions {
            return Ok(0);
        }
        let table = fs::read_to_string("/proc/timer_list").context("cannot read /proc/timer_list")?;
        let line = table
            .lines()
            .find_map(|line| line.trim().strip_prefix(".idle_sleeptime"))
            .and_then(|rest| rest.split_whitespace().nth(1));
        line.and_then(|number| number.parse().ok())
            .context("/proc/timer_list tells of no idle_sleeptime")
    }

    /// By the server's processes, so far, with their threads.
    fn used(&self) -> Result<u64> {
        let mut sum = 0;
        for server in &self.servers {
            let clock = ClockId::pid_cpu_clock_id(*server).context("a process of the server is gone")?;
            let used = clock_gettime(clock)?;
            sum += used.tv_sec() as u64 * 1_000_000_000 + used.tv_nsec() as u64;
        }
        Ok(sum)
    }
}
