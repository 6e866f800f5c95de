// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the figures say: whether the aims are met, and from which length on the module's way is the
//! cheaper one.

use super::{Access, Case, Link, SIZES, Way};
use crate::report::{Aim, Row, value};

fn cost(rows: &[Row], case: &str, way: Way) -> Option<f64> {
    value(rows, case, way.name(), "instructions")
}

/// `of` against `to`, each a case and a way.
fn ratio(rows: &[Row], of: (&str, Way), to: (&str, Way), limit: f64) -> Option<Aim> {
    let (cost, base) = (cost(rows, of.0, of.1)?, cost(rows, to.0, to.1)?);
    let against = match (of.0 == to.0, of.1 == to.1) {
        (true, _) => to.1.name().to_owned(),
        (false, true) => to.0.to_owned(),
        (false, false) => format!("{}, {}", to.0, to.1.name()),
    };
    Some(Aim {
        text: format!(
            "{}, {}: {:.3} of {against}, at most {limit}",
            of.0,
            of.1.name(),
            cost / base
        ),
        met: cost <= limit * base,
    })
}

/// The aims that these rows can be held against.
pub fn aims(rows: &[Row]) -> Vec<Aim> {
    let same = |case, of, to, limit| ratio(rows, (case, of), (case, to), limit);
    let (short, middle, long) = ("tcp-direct-4k", "tcp-direct-128k", "tcp-direct-1m");
    let crc = |case: &str| ratio(rows, (&format!("{case}-crc"), Way::Fill), (case, Way::Fill), 1.15);
    let aims = [
        same(middle, Way::Fill, Way::Transport, 1.25),
        same(long, Way::Fill, Way::Transport, 1.35),
        same(middle, Way::Fill, Way::Copy, 0.62),
        same(long, Way::Fill, Way::Copy, 0.62),
        crc(middle),
        crc(long),
        same(short, Way::Fill, Way::Copy, 1.0),
    ];
    aims.into_iter().flatten().collect()
}

/// For which lengths the module's way is cheaper than copying.
pub fn crossings(rows: &[Row]) -> Vec<String> {
    let mut lines = Vec::new();
    for link in [Link::Tcp, Link::Unix] {
        for (access, way) in [
            (Access::Direct, Way::Fill),
            (Access::Buffered, Way::Fill),
            (Access::Write, Way::Drain),
        ] {
            for crc in [false, true] {
                let case = |bytes| Case {
                    link,
                    access,
                    bytes,
                    crc,
                };
                let gains: Option<Vec<f64>> = SIZES
                    .iter()
                    .map(|&(bytes, _)| {
                        let name = case(bytes).name();
                        Some(cost(rows, &name, Way::Copy)? - cost(rows, &name, way)?)
                    })
                    .collect();
                if let Some(gains) = gains {
                    let name = case(SIZES[0].0).name().replace("-4k", "");
                    lines.push(format!(
                        "{name}: {} is cheaper than copy {}",
                        way.name(),
                        when(&gains)
                    ));
                }
            }
        }
    }
    lines
}

/// Where the gain, by length, is one.
fn when(gains: &[f64]) -> String {
    let first = gains.iter().position(|&gain| gain > 0.0);
    match first {
        None => "at no length".into(),
        Some(0) if gains.iter().all(|&gain| gain > 0.0) => "at every length".into(),
        Some(first) if first > 0 && gains[first..].iter().all(|&gain| gain > 0.0) => {
            let ((below, _), (above, _)) = (SIZES[first - 1], SIZES[first]);
            let (loss, gain) = (-gains[first - 1], gains[first]);
            // As if the gain grew in proportion to the length.
            let at = below as f64 + (above - below) as f64 * loss / (loss + gain);
            format!("from about {:.0} KiB on", at / 1024.0)
        }
        Some(_) => {
            let where_it_is = SIZES.iter().zip(gains).filter(|&(_, &gain)| gain > 0.0);
            let names: Vec<&str> = where_it_is.map(|(&(_, name), _)| name).collect();
            format!("at {} only", names.join(", "))
        }
    }
}
