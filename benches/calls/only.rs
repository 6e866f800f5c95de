// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which cases are measured.

/// Names of cases, in which `*` stands for anything; none for all.
#[derive(Debug, Default)]
pub struct Only(Vec<String>);

impl Only {
    pub fn new(patterns: Vec<String>) -> Self {
        Self(patterns)
    }

    pub fn takes(&self, case: &str) -> bool {
        self.0.is_empty() || self.0.iter().any(|pattern| matches(pattern, case))
    }
}

fn matches(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((before, behind)) => name.strip_prefix(before).is_some_and(|rest| {
            rest.char_indices()
                .map(|(at, _)| at)
                .chain([rest.len()])
                .any(|at| matches(behind, &rest[at..]))
        }),
    }
}
