// SPDX-License-Identifier: MIT OR Apache-2.0
//! What it costs to bring a payload from a server to an application, and back, in each of the ways
//! that there are: three processes, of which this one is the application.

mod application;
pub mod daemon;
pub mod findings;
pub mod frame;
pub mod server;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use nix::sys::stat::fstat;

use crate::measure::{self, Shape};
use crate::only::Only;
use crate::party::Party;
use crate::report::Row;
use application::{Application, Peer};
use daemon::Asked;
use frame::{Address, LONGEST};
use server::{Listening, Received};

/// In which way the payload comes and goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Way {
    /// The application asks the server by itself.
    Transport,
    /// Through the daemon's memory.
    Copy,
    /// Through a pipe, into the device in one splice with its header.
    Splice,
    /// The frame through a pipe, as a section.
    Stage,
    /// Received by the module.
    Fill,
    /// Received and committed in one call.
    FillCommit,
    /// Withheld from the daemon, sent by the module.
    Drain,
}

impl Way {
    /// The name in tables and in JSON, and of the daemon's argument.
    pub fn name(self) -> &'static str {
        match self {
            Self::Transport => "transport",
            Self::Copy => "copy",
            Self::Splice => "splice",
            Self::Stage => "stage",
            Self::Fill => "fill",
            Self::FillCommit => "fill-commit",
            Self::Drain => "drain",
        }
    }

    pub fn needs_module(self) -> bool {
        matches!(self, Self::Stage | Self::Fill | Self::FillCommit | Self::Drain)
    }

    /// Fails unless the daemon was asked once a call, about as many bytes, and went this way each time.
    fn check(self, case: Case, calls: u64, asked: &Asked) -> Result<()> {
        let (requests, others) = match case.access {
            Access::Write => (asked.writes, asked.reads),
            Access::Direct | Access::Buffered => (asked.reads, asked.writes),
        };
        let bytes = case.bytes as u64;
        let sections = if self.needs_module() { calls } else { 0 };
        ensure!(
            (requests, others, asked.failed) == (calls, 0, 0)
                && (asked.shortest, asked.longest) == (bytes, bytes)
                && asked.sections == sections,
            "{calls} calls with {bytes} bytes each should not ask the daemon this: {asked:?}"
        );
        Ok(())
    }

    /// Who splices never sees the payload, and cannot check it.
    fn does(self, case: Case) -> bool {
        match self {
            Self::Transport | Self::Copy => true,
            Self::Splice => case.access != Access::Write && !case.crc,
            Self::Stage | Self::Fill | Self::FillCommit => case.access != Access::Write,
            Self::Drain => case.access == Access::Write,
        }
    }
}

/// How the server is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Link {
    Tcp,
    Unix,
}

/// What the application does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reads with `O_DIRECT`.
    Direct,
    /// Reads what is not in the page cache.
    Buffered,
    /// Writes with `O_DIRECT`.
    Write,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Case {
    link: Link,
    pub access: Access,
    pub bytes: usize,
    /// The CRC is checked, or, in a WRITE, made.
    pub crc: bool,
}

/// The lengths, and their names.
pub const SIZES: [(usize, &str); 4] = [
    (4 << 10, "4k"),
    (32 << 10, "32k"),
    (128 << 10, "128k"),
    (LONGEST, "1m"),
];

impl Case {
    fn name(self) -> String {
        let link = match self.link {
            Link::Tcp => "tcp",
            Link::Unix => "unix",
        };
        let access = match self.access {
            Access::Direct => "direct",
            Access::Buffered => "buffered",
            Access::Write => "write",
        };
        let size = SIZES.iter().find(|&&(bytes, _)| bytes == self.bytes);
        let size = size.map_or("?", |&(_, name)| name);
        format!("{link}-{access}-{size}{}", if self.crc { "-crc" } else { "" })
    }

    fn shape(self, smoke: bool) -> Shape {
        let calls = match self.bytes {
            _ if smoke => 4,
            0..0x2000 => 200,
            0x2000..0x10000 => 100,
            0x10000..0x40000 => 60,
            _ => 16,
        };
        Shape {
            warm: calls,
            runs: if smoke { 2 } else { 7 },
            calls,
        }
    }
}

/// All cases of a link, in the order of the table.
fn cases(link: Link) -> impl Iterator<Item = Case> {
    [Access::Direct, Access::Buffered, Access::Write]
        .into_iter()
        .flat_map(|access| [false, true].map(|crc| (access, crc)))
        .flat_map(move |(access, crc)| {
            SIZES.map(|(bytes, _)| Case {
                link,
                access,
                bytes,
                crc,
            })
        })
}

/// Calls with the longest payload before anything else: the buffers of TCP grow with what they carry.
const STRETCH: usize = 24;

struct Bench<'a> {
    base: &'a Path,
    metric: &'static str,
    only: &'a Only,
    smoke: bool,
    server: Party,
    application: Application,
}

/// Where a way is measured.
struct Place {
    way: Way,
    mountpoint: PathBuf,
    /// None for transport.
    daemon: Option<Party>,
}

/// Rows ordered by case.
pub fn run(base: &Path, metric: &'static str, only: &Only, smoke: bool) -> Result<Vec<Row>> {
    let socket = base.join("sections.socket");
    let arguments = ["sections-server", socket.to_str().context("not UTF-8")?];
    let (server, Listening { port }) = Party::start("server", &arguments)?;
    let mut bench = Bench {
        base,
        metric,
        only,
        smoke,
        server,
        application: Application::new(),
    };
    let mut rows = Vec::new();
    for (link, address) in [
        (Link::Tcp, Address::Tcp(port)),
        (Link::Unix, Address::Unix(socket)),
    ] {
        if cases(link).any(|case| bench.only.takes(&case.name())) {
            rows.append(&mut bench.link(link, &address)?);
        }
    }
    bench.server.end()?;
    Ok(rows)
}

impl Bench<'_> {
    fn link(&mut self, link: Link, address: &Address) -> Result<Vec<Row>> {
        let mut measured: Vec<Vec<(Case, Row)>> = Vec::new();
        let mut fstat = None;
        let control = Case {
            link,
            access: Access::Direct,
            bytes: 128 << 10,
            crc: false,
        };
        let before = self.transport(control, address)?;
        for &way in Way::value_variants() {
            let wanted = |case: &Case| way.does(*case) && self.only.takes(&case.name());
            let wanted: Vec<Case> = cases(link).filter(wanted).collect();
            if wanted.is_empty() || self.smoke && way.needs_module() {
                continue;
            }
            let mut place = self.place(way, address)?;
            if way != Way::Transport {
                self.same_fstat(&place, &mut fstat)?;
            }
            let mut rows = Vec::new();
            let mut stretched = None;
            for case in wanted {
                // Where it is only tried, nobody may make pipes that have room for everything.
                if self.smoke && way == Way::Splice && case.bytes == LONGEST {
                    continue;
                }
                let peer = match way {
                    Way::Transport => Peer::Server(address.connect()?),
                    _ => application::open(case, &place.mountpoint)?,
                };
                // Not the socket's buffers alone: the daemon's memory is touched here, too.
                if stretched != Some(case.access) {
                    self.stretch(case, &peer)?;
                    stretched = Some(case.access);
                }
                let about = || format!("case {}, variant {}", case.name(), way.name());
                let row = self.case(case, &mut place, &peer).with_context(about)?;
                rows.extend(row.map(|row| (case, row)));
            }
            if let Some(daemon) = place.daemon.take() {
                daemon.end()?;
            }
            measured.push(rows);
        }
        let after = self.transport(control, address)?;
        eprintln!(
            "control: {}, transport: {before:.0} before, {after:.0} after",
            control.name()
        );
        ensure!(
            self.smoke || (after - before).abs() <= 0.02 * before,
            "{}: transport costs {before:.0} before, {after:.0} after: not comparable",
            control.name()
        );
        let all: Vec<(Case, Row)> = measured.into_iter().flatten().collect();
        let of = |case: Case| all.iter().filter(move |(of, _)| *of == case);
        Ok(cases(link).flat_map(of).map(|(_, row)| row.clone()).collect())
    }

    fn place(&self, way: Way, address: &Address) -> Result<Place> {
        let mountpoint = self.base.join("sections");
        fs::create_dir_all(&mountpoint)?;
        let mut daemon = None;
        if way != Way::Transport {
            let server = address.to_string();
            let path = mountpoint.to_str().context("not UTF-8")?;
            let mut arguments = vec!["sections-daemon", way.name(), &server, path];
            if self.smoke {
                arguments.push("--stock");
            }
            let (party, _): (Party, String) = Party::start("daemon", &arguments)?;
            daemon = Some(party);
            application::set_readahead(&mountpoint)?;
        }
        Ok(Place {
            way,
            mountpoint,
            daemon,
        })
    }

    /// A control: what the daemon is not asked about costs the same whatever the way.
    fn same_fstat(&self, place: &Place, first: &mut Option<f64>) -> Result<()> {
        let file = fs::File::open(place.mountpoint.join(daemon::FILES[0]))?;
        let shape = Shape {
            warm: 50,
            runs: 7,
            calls: 300,
        };
        let cost = measure::cost(shape, &mut |_| fstat(&file).is_ok())?;
        let first = *first.get_or_insert(cost);
        ensure!(
            self.smoke || (cost - first).abs() <= 0.02 * first,
            "{}: fstat costs {cost:.0}, and {first:.0} before: not comparable",
            place.way.name()
        );
        Ok(())
    }

    fn transport(&mut self, case: Case, address: &Address) -> Result<f64> {
        let peer = Peer::Server(address.connect()?);
        self.stretch(case, &peer)?;
        self.cost(case, &peer)
    }

    fn stretch(&mut self, case: Case, peer: &Peer) -> Result<()> {
        let longest = Case {
            bytes: if self.smoke { 128 << 10 } else { LONGEST },
            ..case
        };
        self.application.forget(longest, peer)?;
        for i in 0..STRETCH {
            self.application.call(longest, peer, i)?;
        }
        Ok(())
    }

    /// The median over the runs of what one call costs.
    fn cost(&mut self, case: Case, peer: &Peer) -> Result<f64> {
        let shape = case.shape(self.smoke);
        let application = &mut self.application;
        application.forget(case, peer)?;
        for i in 0..shape.warm {
            application.call(case, peer, i)?;
        }
        application.check(case)?;
        let mut runs = Vec::new();
        for _ in 0..shape.runs {
            application.forget(case, peer)?;
            let start = Instant::now();
            for i in 0..shape.calls {
                application.call(case, peer, i)?;
            }
            runs.push(start.elapsed().as_nanos() as f64 / shape.calls as f64);
        }
        application.check(case)?;
        Ok(measure::median(&mut runs))
    }

    /// Cost and requests of a call.
    fn case(&mut self, case: Case, place: &mut Place, peer: &Peer) -> Result<[Row; 2]> {
        let shape = case.shape(self.smoke);
        let calls = shape.warm as u64 + shape.all_calls();
        if let Some(daemon) = &mut place.daemon {
            daemon.ask::<Asked>()?;
        }
        self.server.ask::<Received>()?;
        let cost = self.cost(case, peer)?;
        let mut requests = 0;
        if let Some(daemon) = &mut place.daemon {
            let asked: Asked = daemon.ask()?;
            requests = asked.reads + asked.writes;
            place.way.check(case, calls, &asked)?;
        }
        let received: Received = self.server.ask()?;
        if case.access == Access::Write {
            let right = received.frames == calls && received.wrong == 0 && received.length == case.bytes;
            ensure!(
                right && received.intact && (received.summed || !case.crc),
                "the server received something else in {calls} calls: {received:?}"
            );
        }
        let requests = requests as f64 / calls as f64;
        eprintln!(
            "{:22} {:12} {cost:9.0} {} {requests:6.3} requests of {} bytes",
            case.name(),
            place.way.name(),
            self.metric,
            case.bytes
        );
        let row = |metric: &str, value: f64| Row {
            suite: "sections".into(),
            case: case.name(),
            variant: place.way.name().into(),
            metric: metric.into(),
            unit: format!("{metric}/call"),
            value,
        };
        Ok([row(self.metric, cost.round()), row("upcalls", requests)])
    }
}
