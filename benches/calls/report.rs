// SPDX-License-Identifier: MIT OR Apache-2.0
//! Figures, as JSON and as tables.

use std::fmt::Write;

use serde::{Deserialize, Serialize};

/// One figure.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    pub suite: String,
    pub case: String,
    pub variant: String,
    pub metric: String,
    pub unit: String,
    pub value: f64,
}

/// A JSON list with a line for each row, so that two runs can be compared with `diff`.
pub fn json(rows: &[Row]) -> serde_json::Result<String> {
    let lines = rows
        .iter()
        .map(serde_json::to_string)
        .collect::<Result<Vec<_>, _>>()?;
    Ok(format!("[\n{}\n]\n", lines.join(",\n")))
}

/// `old` with what `new` has of its suites: in the place of the old figures, or at the end.
pub fn merged(old: Vec<Row>, new: Vec<Row>) -> Vec<Row> {
    let mut all = Vec::new();
    for suite in distinct(&[&old[..], &new[..]].concat(), |row| &row.suite) {
        let of =
            |rows: &[Row]| -> Vec<Row> { rows.iter().filter(|row| row.suite == suite).cloned().collect() };
        let fresh = of(&new);
        all.append(&mut if fresh.is_empty() { of(&old) } else { fresh });
    }
    all
}

/// `30564` as `30 564`, the way the tables print it.
pub fn grouped(number: f64) -> String {
    let digits = format!("{:.0}", number.abs());
    let mut out = String::from(if number < -0.5 { "-" } else { "" });
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(' ');
        }
        out.push(digit);
    }
    out
}

/// Upcalls a call: whole numbers as such, others with two digits.
pub fn counted(upcalls: f64) -> String {
    if (upcalls - upcalls.round()).abs() < 0.005 {
        format!("{upcalls:.0}")
    } else {
        format!("{upcalls:.2}")
    }
}

/// A cost: what is small and no whole number with two digits.
fn amount(cost: f64) -> String {
    if cost < 100.0 {
        counted(cost)
    } else {
        grouped(cost)
    }
}

/// The distinct values of a column, in order of appearance.
fn distinct<'a>(rows: &'a [Row], column: impl Fn(&'a Row) -> &'a str) -> Vec<&'a str> {
    let mut seen = Vec::new();
    for value in rows.iter().map(column) {
        if !seen.contains(&value) {
            seen.push(value);
        }
    }
    seen
}

/// The value of one metric of one case and variant.
pub fn value(rows: &[Row], case: &str, variant: &str, metric: &str) -> Option<f64> {
    let mut found = rows
        .iter()
        .filter(|row| row.case == case && row.variant == variant && row.metric == metric);
    found.next().map(|row| row.value)
}

/// The rows of one suite: others may have cases of the same name.
pub fn of_suite(rows: &[Row], suite: &str) -> Vec<Row> {
    rows.iter().filter(|row| row.suite == suite).cloned().collect()
}

/// The metric of what a server has of a cost, in the same unit.
pub const SERVER: &str = "server";

/// Is it a cost, and all of it? Not upcalls, all or those of an opcode, nor a server's share.
fn is_cost(row: &Row) -> bool {
    row.metric.split('.').next() != Some("upcalls") && row.metric != SERVER
}

/// What a cell of the table shows: the cost, with the upcalls in brackets where they were counted, and what a server has
/// of it behind a slash; or upcalls alone.
fn cell(rows: &[Row], case: &str, variant: &str) -> String {
    let cost = rows
        .iter()
        .find(|row| row.case == case && row.variant == variant && is_cost(row));
    let shown = match (cost, value(rows, case, variant, "upcalls")) {
        (Some(cost), Some(upcalls)) => format!("{} ({})", amount(cost.value), counted(upcalls)),
        (Some(cost), None) => amount(cost.value),
        (None, Some(upcalls)) => grouped(upcalls),
        (None, None) => "-".into(),
    };
    match value(rows, case, variant, SERVER) {
        Some(server) => format!("{shown} / {}", grouped(server)),
        None => shown,
    }
}

/// What a line of the table is called: with its unit, where that is not instructions.
fn label(rows: &[Row], case: &str) -> String {
    match rows.iter().find(|row| row.case == case && is_cost(row)) {
        Some(row) if row.metric != "instructions" => format!("{case}, {}", row.unit),
        _ => case.into(),
    }
}

/// A table of one suite, as lines of cells; the first line is the heading.
fn cells(rows: &[Row], suite: &str) -> Vec<Vec<String>> {
    let rows = of_suite(rows, suite);
    let variants = distinct(&rows, |row| &row.variant);
    let heading = std::iter::once(suite)
        .chain(variants.iter().copied())
        .map(String::from)
        .collect();
    let mut table = vec![heading];
    for case in distinct(&rows, |row| &row.case) {
        let values = variants.iter().map(|variant| cell(&rows, case, variant));
        table.push(std::iter::once(label(&rows, case)).chain(values).collect());
    }
    table
}

/// Lays cells out in columns, the first to the left and the others to the right; `paint` gets each
/// padded cell with its line and column.
pub fn columns(
    table: &[Vec<String>],
    between: &str,
    paint: impl Fn(usize, usize, String) -> String,
) -> Vec<String> {
    let count = table.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..count)
        .map(|column| {
            table
                .iter()
                .filter_map(|line| line.get(column))
                .map(|cell| cell.chars().count())
                .max()
        })
        .map(Option::unwrap_or_default)
        .collect();
    let lay = |(i, line): (usize, &Vec<String>)| {
        let cells = line
            .iter()
            .zip(&widths)
            .enumerate()
            .map(|(column, (cell, &width))| {
                let cell = if column == 0 {
                    format!("{cell:<width$}")
                } else {
                    format!("{cell:>width$}")
                };
                paint(i, column, cell)
            });
        cells.collect::<Vec<_>>().join(between)
    };
    table.iter().enumerate().map(lay).collect()
}

/// All suites as text for a terminal.
pub fn text(rows: &[Row]) -> String {
    let mut out = String::new();
    for suite in distinct(rows, |row| &row.suite) {
        for (i, line) in columns(&cells(rows, suite), "  ", |_, _, cell| cell)
            .iter()
            .enumerate()
        {
            let _ = writeln!(out, "{line}");
            if i == 0 {
                let _ = writeln!(out, "{}", "-".repeat(line.chars().count()));
            }
        }
        out.push('\n');
    }
    out
}

/// All suites as Markdown.
pub fn markdown(rows: &[Row]) -> String {
    let mut out = String::new();
    for suite in distinct(rows, |row| &row.suite) {
        for (i, line) in cells(rows, suite).iter().enumerate() {
            let _ = writeln!(out, "| {} |", line.join(" | "));
            if i == 0 {
                let _ = writeln!(out, "|---{}|", "|--:".repeat(line.len() - 1));
            }
        }
        out.push('\n');
    }
    out
}

/// A bound that a figure is meant to keep.
#[derive(Debug, PartialEq)]
pub struct Aim {
    pub text: String,
    pub met: bool,
}

/// That one variant's instructions are at most `limit` times those of another; nothing without both.
pub fn ratio(rows: &[Row], case: &str, variant: &str, to: &str, limit: f64) -> Option<Aim> {
    let cost = value(rows, case, variant, "instructions")?;
    let base = value(rows, case, to, "instructions")?;
    Some(Aim {
        text: format!("{case}, {variant}: {:.3} of {to}, at most {limit}", cost / base),
        met: cost <= limit * base,
    })
}

/// The aims that the rows of `meta` and `data` can be held against.
pub fn aims(rows: &[Row]) -> Vec<Aim> {
    let rows = &[of_suite(rows, "meta"), of_suite(rows, "data")].concat();
    let instructions = |case: &str, variant: &str| value(rows, case, variant, "instructions");
    let mut aims = Vec::new();
    for (case, limit) in [("stat", 8000.0), ("fstat", 2400.0)] {
        if let Some(cost) = instructions(case, "handlers") {
            let text = format!(
                "{case}, handlers: {} instructions, at most {}",
                grouped(cost),
                grouped(limit)
            );
            aims.push(Aim {
                text,
                met: cost <= limit,
            });
        }
    }
    for case in ["pread-4k", "pread-128k"] {
        aims.extend(ratio(rows, case, "handlers", "native", 1.15));
    }
    for case in [
        "stat",
        "fstat",
        "missing",
        "getxattr-absent",
        "open-close",
        "pread-4k",
        "pwrite-4k",
    ] {
        aims.extend(ratio(rows, case, "unattached", "stock-0", 1.01));
    }
    aims
}
