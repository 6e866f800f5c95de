// SPDX-License-Identifier: MIT OR Apache-2.0
//! The other client of the storm: a process that has no mount, but a connection to the server, and changes each file when
//! it is told to.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use extfuse::remote::Address;
use extfuse::remote::client::{About, Connection, Disconnected, Target};
use extfuse::remote::wire::auth::Token;
use extfuse::remote::wire::message::{Lookup, SetAttr, SetTime, Timestamp};
use extfuse::remote::wire::{Export, Name, Reply, Request};

use super::daemon::{Answer, BLOCK, Layout, STORM, Storm, now};
use super::{AT_A_TIME, at_a_time};
use crate::party;

/// The root's node.
const ROOT: u64 = 1;

/// What a file shows after so many changes: when it was written, in seconds.
fn changed(times: u64) -> Option<Timestamp> {
    Timestamp::new(i64::try_from(times).ok()?, 0)
}

fn node(connection: &Connection, parent: u64, leaf: &str) -> Result<u64> {
    let name = Name::new(leaf.as_bytes())?;
    let about = About {
        node: parent,
        ..About::default()
    };
    let answer = connection
        .call(&about, &Request::Lookup(Lookup { name }))
        .with_context(|| leaf.to_owned())?;
    match answer.reply()? {
        Reply::Lookup(entry) => Ok(entry.node),
        reply => bail!("LOOKUP was answered by {reply:?}"),
    }
}

/// The nodes of all names.
fn nodes(connection: &Connection, layout: Layout) -> Result<Vec<u64>> {
    let directories: Vec<u64> = (0..layout.directories)
        .map(|directory| node(connection, ROOT, &directory.to_string()))
        .collect::<Result<_>>()?;
    let of = |name: usize| -> Result<u64> {
        let path = layout.path(name);
        let (_, leaf) = path.split_once('/').context("a name is in a directory")?;
        node(connection, directories[layout.directory_of(name)], leaf)
    };
    let share = layout.names.div_ceil(AT_A_TIME);
    let shares = at_a_time(AT_A_TIME, |number| {
        let names = (0..layout.names).skip(number * share).take(share);
        names.map(of).collect::<Result<Vec<_>>>()
    })?;
    Ok(shares.concat())
}

fn change(connection: &Connection, node: u64, times: u64) -> Result<()> {
    let mtime = changed(times).map(SetTime::At);
    ensure!(mtime.is_some(), "no file shows so many changes");
    let set = SetAttr {
        mtime,
        ..SetAttr::default()
    };
    let about = About {
        node,
        ..About::default()
    };
    connection
        .call(&about, &Request::Setattr(set))
        .context("SETATTR")
        .map(drop)
}

/// Changes each node, so that it shows that it was changed so often. In blocks: each is changed by one thread, one node
/// after the other.
fn storm(connection: &Connection, nodes: &[u64], times: u64) -> Result<Storm> {
    let blocks: Vec<&[u64]> = nodes.chunks(BLOCK).collect();
    let told: Vec<AtomicU64> = blocks.iter().map(|_| AtomicU64::new(0)).collect();
    let next = AtomicUsize::new(0);
    let caller = |_| -> Result<()> {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(block) = blocks.get(number) else {
                return Ok(());
            };
            for node in *block {
                change(connection, *node, times)?;
            }
            told[number].store(now(), Ordering::Relaxed);
        }
    };
    let began = now();
    at_a_time(AT_A_TIME, caller)?;
    Ok(Storm {
        began,
        ended: now(),
        telling: None,
        told: told.into_iter().map(AtomicU64::into_inner).collect(),
        system_calls: None,
    })
}

/// Connects, looks every name up and does as it is told, until standard input ends: `storm N` changes the first N.
pub fn run(address: Address, token: &Path, layout: Layout) -> Result<()> {
    let secret = fs::read(token).with_context(|| token.display().to_string())?;
    let target = Target {
        address,
        export: Export::new("")?,
        token: Some(Token::new(secret.trim_ascii_end())?),
        keeps: false,
        disconnected: Disconnected::Fail,
        tls: None,
        timeout: Duration::from_secs(60),
    };
    let connection = Connection::open(&target)?;
    let nodes = nodes(&connection, layout)?;
    let mut times = 0;
    party::answer_until_end(&"changer", |line| {
        let count = line
            .strip_prefix(STORM)
            .map(|count| count.trim().parse::<usize>());
        let done = match count {
            Some(Ok(count)) => {
                times += 1;
                storm(&connection, &nodes[..count.min(nodes.len())], times)
            }
            _ => Err(anyhow!("what is {line:?}?")),
        };
        match done {
            Ok(storm) => Answer {
                storm: Some(storm),
                ..Answer::default()
            },
            Err(error) => Answer {
                failure: Some(format!("{error:#}")),
                ..Answer::default()
            },
        }
    })
}
