// SPDX-License-Identifier: MIT OR Apache-2.0
//! The tables of the benchmark.

#[path = "../benches/calls/report.rs"]
mod report;

#[path = "../benches/calls/only.rs"]
mod only;

use only::Only;
use report::{Row, aims, columns, counted, grouped, json, markdown, merged, of_suite, ratio, text, value};

fn row(case: &str, variant: &str, metric: &str, value: f64) -> Row {
    let unit = format!("{metric}/call");
    let [case, variant, metric] = [case, variant, metric].map(String::from);
    Row {
        suite: "meta".into(),
        case,
        variant,
        metric,
        unit,
        value,
    }
}

fn rows() -> Vec<Row> {
    vec![
        row("stat", "native", "instructions", 4295.0),
        row("stat", "native", "upcalls", 0.0),
        row("stat", "handlers", "instructions", 8009.0),
        row("stat", "handlers", "upcalls", 0.333),
        row("missing", "handlers", "instructions", 1_234_567.0),
        row("missing", "handlers", "upcalls", 2.0),
    ]
}

#[test]
fn numbers_are_grouped_by_thousands() {
    assert_eq!(
        [0.0, 7.0, 999.4, 1000.0, 30564.2, 1_234_567.0].map(grouped),
        ["0", "7", "999", "1 000", "30 564", "1 234 567"]
    );
    assert_eq!(grouped(-1234.0), "-1 234");
}

#[test]
fn upcalls_show_digits_only_where_there_are_any() {
    assert_eq!([0.0, 2.0, 1.999, 0.333].map(counted), ["0", "2", "2", "0.33"]);
}

#[test]
fn json_has_one_row_a_line_and_comes_back_the_same() {
    let written = json(&rows()).unwrap();
    assert_eq!(written.lines().count(), rows().len() + 2);
    let first = r#"{"suite":"meta","case":"stat","variant":"native","metric":"instructions","unit":"instructions/call","value":4295.0},"#;
    assert_eq!(written.lines().nth(1), Some(first));
    assert_eq!(serde_json::from_str::<Vec<Row>>(&written).unwrap(), rows());
}

#[test]
fn tables_align_and_show_what_was_not_measured() {
    assert_eq!(
        text(&rows()),
        "meta        native       handlers\n\
         ---------------------------------\n\
         stat     4 295 (0)   8 009 (0.33)\n\
         missing          -  1 234 567 (2)\n\n"
    );
    assert_eq!(
        markdown(&rows()),
        "| meta | native | handlers |\n|---|--:|--:|\n| stat | 4 295 (0) | 8 009 (0.33) |\n\
         | missing | - | 1 234 567 (2) |\n\n"
    );
}

#[test]
fn paint_gets_padded_cells() {
    let table = [vec!["a".to_string(), "1".into()], vec!["bc".into(), "234".into()]];
    let painted = columns(&table, "|", |line, column, cell| {
        format!("<{line}{column}{cell}>")
    });
    assert_eq!(painted, ["<00a >|<01  1>", "<10bc>|<11234>"]);
}

#[test]
fn other_units_are_named_beside_the_case() {
    let mut figure = row("entry_map", "1m", "memory", 400.0);
    figure.unit = "bytes/entry".into();
    assert!(text(&[figure]).contains("entry_map, bytes/entry  400\n"));
}

#[test]
fn upcalls_alone_are_the_figure_and_those_by_opcode_are_none() {
    let figures = [
        row("find", "stock-0", "upcalls", 1234.0),
        row("find", "stock-0", "upcalls.LOOKUP", 1000.0),
        row("find", "handlers", "upcalls", 0.0),
    ];
    let table = text(&figures);
    assert!(table.ends_with("find    1 234         0\n\n"), "{table}");
}

#[test]
fn a_missed_aim_is_told_from_a_met_one() {
    let figures = [
        row("stat", "handlers", "instructions", 8001.0),
        row("pread-4k", "native", "instructions", 1000.0),
        row("pread-4k", "handlers", "instructions", 1150.0),
        row("stat", "stock-0", "instructions", 1000.0),
        row("stat", "unattached", "instructions", 1011.0),
    ];
    let aims = aims(&figures);
    let met: Vec<bool> = aims.iter().map(|aim| aim.met).collect();
    assert_eq!(met, [false, true, false], "{aims:?}");
    assert_eq!(
        value(&figures, "pread-4k", "native", "instructions"),
        Some(1000.0)
    );
}

#[test]
fn a_suite_that_is_measured_again_takes_its_old_place() {
    let of = |suite: &str, value| Row {
        suite: suite.into(),
        ..row("stat", "native", "instructions", value)
    };
    let old = vec![of("meta", 1.0), of("data", 2.0), of("data", 3.0)];
    let values = |rows: Vec<Row>| -> Vec<(String, f64)> {
        rows.into_iter().map(|row| (row.suite, row.value)).collect()
    };
    let pairs = |pairs: &[(&str, f64)]| -> Vec<(String, f64)> {
        pairs
            .iter()
            .map(|&(suite, value)| (suite.into(), value))
            .collect()
    };
    let new = vec![of("sections", 5.0), of("meta", 4.0)];
    assert_eq!(
        values(merged(old.clone(), new)),
        pairs(&[("meta", 4.0), ("data", 2.0), ("data", 3.0), ("sections", 5.0)])
    );
    assert_eq!(merged(old.clone(), vec![]), old);
    assert_eq!(merged(vec![], old.clone()), old);
}

#[test]
fn a_star_stands_for_anything_in_the_name_of_a_case() {
    let takes = |pattern: &str, name| Only::new(vec![pattern.into()]).takes(name);
    assert!(takes("tcp-direct-4k", "tcp-direct-4k"));
    assert!(!takes("tcp-direct-4k", "tcp-direct-4k-crc"));
    assert!(takes("tcp-direct-4k*", "tcp-direct-4k"));
    assert!(takes("tcp-direct-4k*", "tcp-direct-4k-crc"));
    assert!(takes("*-4k*", "unix-direct-4k-crc"));
    assert!(takes("tcp*crc", "tcp-direct-4k-crc"));
    assert!(!takes("tcp*crc", "unix-direct-4k-crc"));
    assert!(!takes("*crc", "tcp-direct-4k"));
    assert!(takes("*", ""));
    assert!(Only::default().takes("anything"));
    assert!(Only::new(vec!["a".into(), "b".into()]).takes("b"));
}

#[test]
fn aims_hold_against_their_own_suite() {
    let mut rows = rows();
    let other = Row {
        suite: "walk".into(),
        ..row("stat", "handlers", "instructions", 1.0)
    };
    rows.insert(0, other);
    assert_eq!(of_suite(&rows, "walk").len(), 1);
    let stat = aims(&rows).into_iter().find(|aim| aim.text.starts_with("stat, "));
    assert!(!stat.unwrap().met, "8 009 is more than 8 000");
}

#[test]
fn ratios_need_both_and_are_met_at_their_limit() {
    let rows = rows();
    let of = |limit| ratio(&rows, "stat", "handlers", "native", limit);
    assert_eq!(
        of(1.5).unwrap().text,
        "stat, handlers: 1.865 of native, at most 1.5"
    );
    assert!(!of(1.5).unwrap().met && of(8009.0 / 4295.0).unwrap().met);
    assert_eq!(ratio(&rows, "missing", "handlers", "native", 1.0), None);
}
