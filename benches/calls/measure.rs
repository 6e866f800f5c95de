// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a call costs: nanoseconds of `CLOCK_MONOTONIC`, which are instructions under `-icount shift=0`.

use std::hint::black_box;
use std::time::Instant;

use anyhow::{Result, ensure};
use nix::unistd::getpid;

/// How often a case is run.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Calls before anything is counted.
    pub warm: usize,
    pub runs: usize,
    /// Calls a run.
    pub calls: usize,
}

impl Shape {
    pub fn all_calls(self) -> u64 {
        (self.runs * self.calls) as u64
    }
}

/// Something to be measured: it gets the number of the call and says whether the answer was the expected one.
pub type Call<'a> = dyn FnMut(usize) -> bool + 'a;

pub fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len().is_multiple_of(2) {
        (values[middle - 1] + values[middle]) / 2.0
    } else {
        values[middle]
    }
}

pub fn warm(shape: Shape, call: &mut Call) -> Result<()> {
    ensure!((0..shape.warm).all(&mut *call), "a call failed while warming up");
    Ok(())
}

/// The median over the runs of what one call costs, the loop around it included.
fn cost_with_loop(shape: Shape, call: &mut Call) -> Result<f64> {
    let mut failed = 0usize;
    let mut runs: Vec<f64> = (0..shape.runs)
        .map(|_| {
            let start = Instant::now();
            for i in 0..shape.calls {
                failed += usize::from(!call(i));
            }
            start.elapsed().as_nanos() as f64 / shape.calls as f64
        })
        .collect();
    ensure!(
        failed == 0,
        "{failed} of {} calls did not answer as expected",
        shape.all_calls()
    );
    Ok(median(&mut runs))
}

/// The median over the runs of what one call costs. The loop, measured around an empty call, is taken off.
pub fn cost(shape: Shape, call: &mut Call) -> Result<f64> {
    let empty = cost_with_loop(shape, &mut |i| black_box(i) == i)?;
    Ok((cost_with_loop(shape, call)? - empty).max(0.0))
}

/// The cost of a system call that no file system is asked for: a control, which must be the same in
/// every variant.
pub fn null_call() -> Result<f64> {
    let pid = getpid();
    cost(
        Shape {
            warm: 100,
            runs: 9,
            calls: 1000,
        },
        &mut |_| getpid() == pid,
    )
}

/// Whether the clock counts instructions: a loop then takes the same whole number of them in each of
/// its rounds, every time it is run.
pub fn clock_counts_instructions() -> bool {
    let rounds = 1_000_000u64;
    let once = || {
        let start = Instant::now();
        for i in 0..rounds {
            black_box(i);
        }
        start.elapsed().as_nanos() as f64 / rounds as f64
    };
    let mut times: Vec<f64> = (0..9).map(|_| once()).collect();
    let spread =
        times.iter().cloned().fold(f64::MIN, f64::max) - times.iter().cloned().fold(f64::MAX, f64::min);
    // A timer tick or two fall into each million rounds: well under one in a hundred.
    let middle = median(&mut times);
    middle >= 1.0 && (middle - middle.round()).abs() < 0.05 * middle && spread < 0.1 * middle
}
