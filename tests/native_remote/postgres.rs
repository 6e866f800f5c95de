// SPDX-License-Identifier: MIT OR Apache-2.0
//! A database on what a server has: its files are as it left them, also when it is killed.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};

use crate::common::{Scratch, eventually};
use crate::{Served, mount};

/// As the database's user; root is not served by it.
const SCRIPT: &str = r#"
    set -e
    export PGHOST=$PWD PGUSER=postgres LC_ALL=C.UTF-8
    start() {
        pg_ctl -D mount/db -l log -w start >/dev/null \
            -o "-c listen_addresses= -c unix_socket_directories=$PWD -c shared_buffers=4MB -c wal_level=minimal -c max_wal_senders=0"
    }
    initdb -D mount/db -A trust --data-checksums >/dev/null
    start
    pgbench -i -q postgres 2>/dev/null
    pgbench -c 4 -j 2 -t 50 postgres >/dev/null 2>&1
    kill -9 "$(head -1 mount/db/postmaster.pid)"
    # The others of it notice, and go.
    for i in $(seq 100); do start 2>/dev/null && break; sleep 0.1; done
    psql -AtqX postgres <<-'END'
        create extension amcheck;
        select count(*) from pgbench_history;
        select sum(abalance) = (select sum(delta) from pgbench_history) from pgbench_accounts;
        select count(bt_index_check(oid, true)) > 50 from pg_class where relkind = 'i';
	END
    pg_ctl -D mount/db -m fast -w stop >/dev/null
    PATH=$PATH:$(dirname "$(readlink -f "$(type -p initdb)")") pg_checksums -D mount/db --check | grep 'Bad checksums'
"#;

fn run(scratch: &Scratch) -> Output {
    Command::new("setpriv")
        .args([
            "--reuid=postgres",
            "--regid=postgres",
            "--init-groups",
            "bash",
            "-c",
            SCRIPT,
        ])
        .current_dir(scratch.path())
        .output()
        .unwrap()
}

#[test]
fn postgresql_recovers_what_it_has_committed() {
    // Part of this machine's image, and no part of what scripts/setup fetches.
    if Command::new("initdb").arg("--version").output().is_err() {
        return println!("skipped: there is no PostgreSQL on this machine");
    }
    let mut ways = vec![&["--writeback", "--spool", "memory"] as &[&str]];
    if std::env::var_os("EXTFUSE_LONG").is_some() {
        ways.push(&[]);
    }
    for more in ways {
        let scratch = Scratch::new();
        for dir in [scratch.path(), &scratch.source()] {
            fs::set_permissions(dir, fs::Permissions::from_mode(0o777)).unwrap();
        }
        let served = Served::tcp(&scratch.source(), &["--exclusive"]);
        let _mounted = mount(&served.url(), &scratch, more);
        let output = run(&scratch);
        let said = String::from_utf8_lossy(&output.stdout);
        assert_eq!(
            said.lines().collect::<Vec<_>>(),
            ["200", "t", "t", "Bad checksums:  0"],
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(output.status.success());
        let pid = scratch.source().join("db/postmaster.pid");
        eventually(|| !pid.exists());
    }
}
