// SPDX-License-Identifier: MIT OR Apache-2.0
//! What no handler may change, measured in every variant: if it moves, something else was measured.

use anyhow::{Result, bail, ensure};

use crate::cases;
use crate::measure::{self, Shape};
use crate::mounts::{Place, Variant};
use crate::tree::Paths;

/// The controls of one moment.
#[derive(Clone, Copy, Debug)]
pub struct Controls {
    variant: Variant,
    null_call: f64,
    /// Upcalls of MKDIR and RMDIR a directory made and removed.
    made: f64,
}

impl Controls {
    /// Measures them in the current directory, which has to be `place`.
    pub fn measure(place: &Place) -> Result<Self> {
        let null_call = measure::null_call()?;
        let shape = Shape {
            warm: 5,
            runs: 1,
            calls: 50,
        };
        let paths = Paths::new(0)?;
        let mut call = |_| cases::make_and_remove(&paths);
        measure::warm(shape, &mut call)?;
        let before = place.counters()?;
        measure::cost(shape, &mut call)?;
        let counted = place.counted_since(&before)?;
        let made = counted.of("MKDIR").upcalls + counted.of("RMDIR").upcalls;
        Ok(Self {
            variant: place.variant,
            null_call,
            made: made as f64 / shape.all_calls() as f64,
        })
    }
}

/// Fails if a control differs between variants, or between the beginning and the end of one.
pub fn compare(controls: &[Controls], metric: &str, smoke: bool) -> Result<()> {
    let Some(first) = controls.first().map(|control| control.null_call) else {
        return Ok(());
    };
    for control in controls {
        let name = control.variant.name();
        let wanted = if control.variant == Variant::Native {
            0.0
        } else {
            2.0
        };
        let made = control.made;
        ensure!(
            made == wanted,
            "{name}: mkdir and rmdir made {made} upcalls a pair instead of {wanted}"
        );
        let null_call = control.null_call;
        if !smoke && (null_call - first).abs() > 0.02 * first {
            bail!("{name}: getpid costs {null_call:.1} instructions, and {first:.1} before: not comparable");
        }
    }
    eprintln!("controls: getpid {first:.0} {metric}, mkdir + rmdir 2 upcalls, in every variant");
    Ok(())
}
