// SPDX-License-Identifier: MIT OR Apache-2.0
//! `extfuse stat`.

use std::fmt::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use extfuse::control::{Fill, Mode, Program, Remote, Report, Requests, Spool, ask};

use super::handler::whose;
use super::umount::find;
use super::{Failure, say};

/// Show what a mount is, and who answered its requests.
#[derive(Debug, Args)]
pub struct Stat {
    /// Where it is mounted
    mountpoint: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Stat {
    pub fn run(self) -> Result<ExitCode, Failure> {
        let location = find(&self.mountpoint)?;
        let report = ask(location.id.dev, location.mount.owner())
            .with_context(|| self.mountpoint.display().to_string())?;
        if self.json {
            say(&(serde_json::to_string_pretty(&report)? + "\n"))?;
        } else {
            say(&table(&report))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

type Column = (&'static str, fn(&Requests) -> Option<u64>);

const COLUMNS: [Column; 8] = [
    ("requests", |row| row.requests),
    ("answered", |row| row.returned),
    ("kept", |row| row.kept),
    ("errno", |row| row.errno),
    ("passthru", |row| row.passthru),
    ("refused", |row| row.refused),
    ("upcalls", |row| Some(row.upcalls)),
    ("errors", |row| row.errors),
];

fn table(report: &Report) -> String {
    let mut out = String::new();
    let mut line = |label: &str, text: &str| {
        // Writing to a string cannot fail.
        let _ = writeln!(out, "{label:<13}{text}");
    };
    line("source", &report.source);
    line("mount", &format!("{} (dev {})", report.mountpoint, report.dev));
    line("served by", &served_by(report));
    if report.mode == Mode::Extfuse {
        line(
            "handlers",
            &report.program.as_ref().map_or_else(|| "none".into(), handlers),
        );
    }
    for handler in &report.custom {
        line("", &format!("{}: {}", handler.opcode, whose(handler)));
    }
    let fill = |fill: Fill| format!("{} of {}", fill.used, fill.capacity);
    if let Some(maps) = &report.maps {
        line("names", &fill(maps.entries));
        line("attributes", &fill(maps.attrs));
        line("xattrs", &fill(maps.xattrs));
        line("not written", &maps.publish_failures.to_string());
    }
    if let Some(held) = report.held {
        line(
            "held",
            &format!("{} nodes that the kernel has forgotten", fill(held)),
        );
    }
    if let Some(remote) = &report.remote {
        line("server", &server(remote));
        let mut bytes = format!(
            "{} past the daemon, {} through it",
            size(remote.filled),
            size(remote.copied)
        );
        if let Some(copies) = &remote.spool {
            bytes += &format!(", {} from the spool", size(remote.spooled));
            line("read", &bytes);
            line("spool", &spool(copies));
        } else {
            line("read", &bytes);
        }
    }
    for warning in &report.warnings {
        line("warning", warning);
    }
    if report.opcodes.is_empty() {
        line("requests", "none so far");
        return out;
    }
    out.push('\n');
    out.push_str(&requests(report));
    out
}

fn served_by(report: &Report) -> String {
    let fuse = match report.mode {
        Mode::Extfuse => "the extfuse module",
        Mode::Stock => "stock FUSE",
    };
    let threads = if report.threads == 1 { "thread" } else { "threads" };
    format!(
        "{fuse}, process {}, {} {threads}, up {}",
        report.pid,
        report.threads,
        uptime(report.uptime)
    )
}

fn server(remote: &Remote) -> String {
    let state = match (remote.connected, remote.lease_left) {
        (false, _) => "not there".into(),
        (true, left) => format!("connected, lease {left:.1} s"),
    };
    let again = match remote.connections {
        0 | 1 => String::new(),
        times => format!(", {} times anew", times - 1),
    };
    format!("{state}{again}, {} round trips", remote.round_trips)
}

fn spool(spool: &Spool) -> String {
    let asked = spool.hits + spool.misses;
    let rate = match asked {
        0 => String::new(),
        _ => format!(", {} of {asked} reads found there", spool.hits),
    };
    format!(
        "{} of {}{rate}, {} not kept",
        size(spool.bytes),
        size(spool.limit),
        spool.passed
    )
}

/// Bytes for people.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = bytes as f64;
    let mut unit = "B";
    for larger in UNITS {
        if value < 1024.0 {
            break;
        }
        (value, unit) = (value / 1024.0, larger);
    }
    match unit {
        "B" => format!("{bytes} B"),
        unit => format!("{value:.1} {unit}"),
    }
}

fn handlers(program: &Program) -> String {
    let errors = if program.errors == 0 {
        String::new()
    } else {
        format!(", {} errors", program.errors)
    };
    if program.attached {
        return format!("{} attached{errors}", program.name);
    }
    let reason = if program.reason.is_empty() {
        &program.exit
    } else {
        &program.reason
    };
    format!("{} not attached any more: {reason}{errors}", program.name)
}

fn uptime(seconds: f64) -> String {
    // Whole seconds of an uptime fit into any integer.
    let seconds = seconds as u64;
    let (days, hours, minutes) = (seconds / 86400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, minutes) => format!("{minutes} min {} s", seconds % 60),
        (0, hours, minutes) => format!("{hours} h {minutes} min"),
        (days, hours, _) => format!("{days} d {hours} h"),
    }
}

/// One row an opcode, one column for everything that is known of any of them.
fn requests(report: &Report) -> String {
    let known: Vec<_> = COLUMNS
        .iter()
        .filter(|(_, value)| report.opcodes.values().any(|row| value(row).is_some()))
        .collect();
    let mut out = format!("{:<16}", "");
    for (title, _) in &known {
        let _ = write!(out, "{title:>12}");
    }
    out.push('\n');
    for (name, row) in &report.opcodes {
        let _ = write!(out, "{name:<16}");
        for (_, value) in &known {
            let number = value(row).map_or_else(|| "-".into(), |number| number.to_string());
            let _ = write!(out, "{number:>12}");
        }
        out.push('\n');
    }
    let _ = write!(out, "{:<16}", "all");
    for (_, value) in &known {
        let _ = write!(
            out,
            "{:>12}",
            report.opcodes.values().filter_map(value).sum::<u64>()
        );
    }
    out.push('\n');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(mode: Mode, row: Requests) -> Report {
        Report {
            source: "/src".into(),
            mountpoint: "/mnt".into(),
            mode,
            dev: "0:45".into(),
            pid: 7,
            threads: 2,
            uptime: 3725.0,
            program: None,
            custom: vec![],
            opcodes: [("LOOKUP".into(), row), ("READ".into(), row)].into(),
            maps: None,
            held: None,
            remote: None,
            warnings: vec![],
        }
    }

    #[test]
    fn a_server_is_shown_where_there_is_one() {
        let row = Requests::default();
        let mut report = report(Mode::Stock, row);
        assert!(!table(&report).contains("server"));
        report.remote = Some(Remote {
            connected: true,
            connections: 3,
            lease_left: 9.87,
            round_trips: 12,
            filled: 3 << 20,
            copied: 1000,
            ..Remote::default()
        });
        let text = table(&report);
        assert!(text.contains("server       connected, lease 9.9 s, 2 times anew, 12 round trips"));
        assert!(text.contains("read         3.0 MiB past the daemon, 1000 B through it\n"));
        assert!(!text.contains("spool"));
        let spool = Spool {
            bytes: 5 << 20,
            limit: 1 << 30,
            hits: 7,
            misses: 2,
            passed: 1,
            fetched: 6 << 20,
        };
        report.remote = report.remote.map(|remote| Remote {
            spooled: 2048,
            spool: Some(spool),
            ..remote
        });
        let text = table(&report);
        assert!(text.contains("1000 B through it, 2.0 KiB from the spool\n"));
        assert!(text.contains("spool        5.0 MiB of 1.0 GiB, 7 of 9 reads found there, 1 not kept\n"));
    }

    #[test]
    fn nodes_that_are_held_are_shown_where_some_may_be() {
        let mut report = report(Mode::Extfuse, Requests::default());
        assert!(!table(&report).contains("held"));
        report.held = Some(Fill {
            used: 900,
            capacity: 65536,
        });
        let text = table(&report);
        assert!(text.contains("held         900 of 65536 nodes that the kernel has forgotten\n"));
    }

    #[test]
    fn stock_shows_what_it_can_count_only() {
        let text = table(&report(
            Mode::Stock,
            Requests {
                upcalls: 4,
                ..Requests::default()
            },
        ));
        assert!(text.contains("up 1 h 2 min"));
        assert!(!text.contains("handlers") && !text.contains("answered"));
        let all: Vec<_> = text.lines().last().unwrap().split_whitespace().collect();
        assert_eq!(all, ["all", "8"]);
    }

    #[test]
    fn extfuse_shows_every_outcome() {
        let row = Requests {
            requests: Some(10),
            returned: Some(6),
            kept: Some(20),
            errno: Some(1),
            passthru: Some(0),
            refused: Some(0),
            upcalls: 3,
            served: 3,
            errors: None,
        };
        let text = table(&report(Mode::Extfuse, row));
        let all: Vec<_> = text.lines().last().unwrap().split_whitespace().collect();
        assert_eq!(all, ["all", "20", "12", "40", "2", "0", "0", "6"]);
        assert!(text.contains("handlers     none"));
    }
}
