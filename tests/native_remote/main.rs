// SPDX-License-Identifier: MIT OR Apache-2.0
//! A directory that is served, mounted: by the command, on this machine. Needs root.

#[path = "../common/certificates.rs"]
mod certificates;
mod clients;
#[path = "../common/mod.rs"]
mod common;
#[path = "../pure_wire/dice.rs"]
#[allow(dead_code, reason = "only requests are of interest here")]
mod dice;
#[path = "../fsx/exerciser.rs"]
mod exerciser;
mod fuzz;
mod joined;
mod line;
#[path = "../common/link.rs"]
#[allow(dead_code, reason = "only breaking is of interest here")]
mod link;
mod locker;
mod locks;
mod opens;
mod postgres;
mod programs;
mod serving;
mod shares;
mod spoiled;
#[path = "../common/spoiler.rs"]
mod spoiler;
mod spool;
mod sums;
mod tls;
#[path = "../common/tls_ends.rs"]
mod tls_ends;
mod writeback;

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use common::{EXTFUSE, Mounted, PATIENCE, Scratch, eventually, extfuse, one_line, refusal};
use exerciser::in_every_mode;
use link::Link;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const TOKEN: &[u8] = b"sixteen bytes are enough";

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// `extfuse serve`, and where clients find it.
struct Served {
    child: Child,
    address: String,
}

impl Served {
    fn start(arguments: &[&str]) -> Self {
        let mut child = Command::new(EXTFUSE)
            .arg("serve")
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let address = line.strip_prefix("extfuse: serving on ").expect(&line).trim();
        Self {
            child,
            address: address.to_owned(),
        }
    }

    /// On a port of this machine; without a token for whoever connects.
    fn tcp(directory: &Path, more: &[&str]) -> Self {
        let mut arguments = [&["--listen", "127.0.0.1:0"], more, &[text(directory)]].concat();
        if !more.contains(&"--token-file") {
            arguments.push("--insecure");
        }
        Self::start(&arguments)
    }

    fn url(&self) -> String {
        match self.address.strip_prefix("unix:") {
            Some(path) => format!("extfuse+unix:{path}"),
            None => format!("extfuse://{}", self.address),
        }
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn mount(url: &str, scratch: &Scratch, more: &[&str]) -> Mounted {
    Mounted::start(
        Path::new(url),
        &scratch.mountpoint(),
        &[&["--stock"], more].concat(),
    )
}

/// A source that is served, and mounted.
fn both(more: &[&str]) -> (Scratch, Served, Mounted) {
    let scratch = Scratch::new();
    let served = Served::tcp(&scratch.source(), &[]);
    let mounted = mount(&served.url(), &scratch, more);
    (scratch, served, mounted)
}

fn token_file(scratch: &Scratch, bytes: &[u8]) -> PathBuf {
    let path = scratch.path().join(format!("token-{}", bytes.len()));
    fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn a_tree_is_made_and_changed_and_is_on_the_server_as_the_client_sees_it() {
    let (scratch, _served, mounted) = both(&[]);
    let there = |name: &str| scratch.source().join(name);
    fs::create_dir_all(mounted.join("a/b")).unwrap();
    let long = "n".repeat(255);
    for name in ["file", "a/b/file", &long] {
        fs::write(mounted.join(name), name.repeat(1000)).unwrap();
        assert_eq!(fs::read(there(name)).unwrap(), name.repeat(1000).as_bytes());
        assert_eq!(
            fs::read(mounted.join(name)).unwrap(),
            name.repeat(1000).as_bytes()
        );
    }
    symlink("a/b", mounted.join("link")).unwrap();
    assert_eq!(fs::read_link(mounted.join("link")).unwrap(), Path::new("a/b"));
    assert_eq!(fs::read(mounted.join("link/file")).unwrap().len(), 8000);
    fs::hard_link(mounted.join("file"), mounted.join("a/other")).unwrap();
    assert_eq!(fs::metadata(there("file")).unwrap().nlink(), 2);
    let (one, other) = (mounted.join("file"), mounted.join("a/other"));
    assert_eq!(
        fs::metadata(&one).unwrap().ino(),
        fs::metadata(&other).unwrap().ino()
    );
    assert_eq!(
        fs::metadata(&one).unwrap().ino(),
        fs::metadata(there("file")).unwrap().ino()
    );
    fs::rename(&one, mounted.join("a/b/moved")).unwrap();
    assert_eq!(fs::metadata(&one).unwrap_err().kind(), ErrorKind::NotFound);
    fs::set_permissions(mounted.join("a/b/moved"), fs::Permissions::from_mode(0o4711)).unwrap();
    assert_eq!(fs::metadata(there("a/b/moved")).unwrap().mode() & 0o7777, 0o4711);
    let file = OpenOptions::new()
        .write(true)
        .open(mounted.join("a/b/moved"))
        .unwrap();
    file.set_len(3).unwrap();
    let then = SystemTime::UNIX_EPOCH + Duration::new(1_000_000_000, 123_456_789);
    file.set_modified(then).unwrap();
    file.sync_all().unwrap();
    let about = fs::metadata(there("a/b/moved")).unwrap();
    assert_eq!((about.len(), about.modified().unwrap()), (3, then));
    fs::remove_file(mounted.join("a/other")).unwrap();
    let not_empty = fs::remove_dir(mounted.join("a")).unwrap_err();
    assert_eq!(not_empty.raw_os_error(), Some(libc::ENOTEMPTY));
    fs::remove_dir_all(mounted.join("a")).unwrap();
    assert!(!there("a").exists());
    nix::unistd::mkfifo(&mounted.join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert_eq!(
        fs::metadata(there("pipe")).unwrap().mode() & libc::S_IFMT,
        libc::S_IFIFO
    );
    let report = mounted.report();
    assert!(
        report.opcodes["LOOKUP"].upcalls > 10 && report.opcodes["MKDIR"].upcalls == 2,
        "{report:?}"
    );
    let here = nix::sys::statvfs::statvfs(mounted.path()).unwrap();
    assert_eq!(
        here.blocks(),
        nix::sys::statvfs::statvfs(&scratch.source()).unwrap().blocks()
    );
}

#[test]
fn what_is_read_on_comes_in_few_reads() {
    let scratch = Scratch::new();
    fs::write(scratch.source().join("large"), vec![7; 16 << 20]).unwrap();
    let served = Served::tcp(&scratch.source(), &[]);
    let reads = |more: &[&str]| {
        let mounted = mount(&served.url(), &scratch, more);
        let mut file = File::open(mounted.join("large")).unwrap();
        let mut page = [0; 4096];
        for _ in 0..(16 << 20) / page.len() {
            file.read_exact(&mut page).unwrap();
            assert_eq!(page, [7; 4096]);
        }
        mounted.report().opcodes["READ"].upcalls
    };
    let (usual, less, none) = (
        reads(&[]),
        reads(&["--read-ahead", "256K"]),
        reads(&["--read-ahead", "0"]),
    );
    // It begins with less.
    assert!((16..32).contains(&usual), "{usual}");
    assert!((64..80).contains(&less), "{less}");
    assert_eq!(none, 4096);
    for (wrong, why) in [
        ("65M", "at most 64M"),
        ("-1", "'-1'"),
        ("much", "a number of bytes"),
    ] {
        let at = scratch.mountpoint();
        let said = refusal(2, &["mount", "--read-ahead", wrong, &served.url(), text(&at)]);
        assert!(said.contains(why), "{said}");
    }
}

#[test]
fn what_changes_on_the_server_is_seen_at_once() {
    let (scratch, _served, mounted) = both(&[]);
    for round in 0..50 {
        scratch.write("file", &"x".repeat(round));
        assert_eq!(fs::read(mounted.join("file")).unwrap().len(), round);
        assert_eq!(fs::metadata(mounted.join("file")).unwrap().len(), round as u64);
        fs::rename(scratch.source().join("file"), scratch.source().join("other")).unwrap();
        assert_eq!(
            fs::metadata(mounted.join("file")).unwrap_err().kind(),
            ErrorKind::NotFound
        );
        assert_eq!(fs::read_dir(mounted.path()).unwrap().count(), 1);
    }
}

#[test]
fn two_clients_see_each_other_and_append_without_loss() {
    let (scratch, served, one) = both(&[]);
    let elsewhere = Scratch::new();
    let two = mount(&served.url(), &elsewhere, &[]);
    let append = |mounted: &Mounted, mark: u8| {
        let path = mounted.join("log");
        move || {
            let mut log = OpenOptions::new().append(true).create(true).open(path).unwrap();
            for _ in 0..200 {
                log.write_all(&[mark; 64]).unwrap();
            }
        }
    };
    let threads = [
        thread::spawn(append(&one, b'1')),
        thread::spawn(append(&two, b'2')),
    ];
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    let log = fs::read(scratch.source().join("log")).unwrap();
    assert_eq!(log.len(), 2 * 200 * 64);
    // No line is torn.
    assert!(
        log.chunks(64)
            .all(|line| line.iter().all(|byte| *byte == line[0]))
    );
    assert_eq!(fs::read(one.join("log")).unwrap(), log);
    assert_eq!(fs::read(two.join("log")).unwrap(), log);
}

#[test]
fn a_large_directory_is_listed_whole() {
    let (scratch, _served, mounted) = both(&[]);
    let names: BTreeSet<String> = (0..5000)
        .map(|i| format!("{i:04}-{}", "x".repeat(i % 200)))
        .collect();
    for name in &names {
        File::create(scratch.source().join(name)).unwrap();
    }
    let listed: Vec<String> = fs::read_dir(mounted.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(listed.len(), names.len());
    assert_eq!(listed.into_iter().collect::<BTreeSet<_>>(), names);
}

#[test]
fn attributes_of_users_and_large_files_go_there_and_back() {
    let (scratch, _served, mounted) = both(&[]);
    scratch.write("file", "");
    let path = mounted.join("file");
    let set = |name: &str, value: &str| {
        let status = Command::new("setfattr")
            .args(["-n", name, "-v", value])
            .arg(&path)
            .status();
        assert!(status.unwrap().success());
    };
    let long = "v".repeat(3000);
    set("user.one", "1");
    set("user.long", &long);
    let listed = Command::new("getfattr")
        .args(["-d", "--absolute-names"])
        .arg(&path)
        .output()
        .unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    assert!(
        listed.contains("user.one=\"1\"") && listed.contains(&long),
        "{listed}"
    );
    let removed = Command::new("setfattr")
        .args(["-x", "user.one"])
        .arg(&path)
        .status()
        .unwrap();
    assert!(removed.success());
    let gone = Command::new("getfattr")
        .args(["-n", "user.one"])
        .arg(&path)
        .output()
        .unwrap();
    assert!(!gone.status.success());

    // More than one request, and a hole.
    let content: Vec<u8> = (0..5 << 20).map(|i: u32| (i % 251) as u8).collect();
    let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    file.write_all_at(&content, 1 << 20).unwrap();
    let mut read = vec![0; content.len()];
    file.read_exact_at(&mut read, 1 << 20).unwrap();
    assert!(read == content);
    assert_eq!(
        fs::read(scratch.source().join("file")).unwrap()[1 << 20..],
        content
    );
    let mut seeking = &file;
    // SAFETY: a descriptor and two numbers.
    let data = unsafe { libc::lseek(std::os::fd::AsRawFd::as_raw_fd(&file), 0, libc::SEEK_DATA) };
    assert_eq!(data, 1 << 20);
    assert_eq!(seeking.seek(SeekFrom::End(0)).unwrap(), 6 << 20);
    let direct = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECT)
        .open(&path)
        .unwrap();
    assert_eq!(direct.metadata().unwrap().len(), 6 << 20);
}

#[test]
fn fsx_finds_nothing() {
    let (_scratch, _served, mounted) = both(&[]);
    in_every_mode(
        mounted.path(),
        3000,
        SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64,
    );
}

#[test]
fn git_and_sqlite_do_their_work_on_it() {
    let (_scratch, _served, mounted) = both(&[]);
    let script = r#"
        export HOME=$PWD GIT_CONFIG_NOSYSTEM=1
        git config --global user.name Somebody
        git config --global user.email somebody@example.org
        git init -q one
        for i in $(seq 40); do mkdir -p one/$((i % 7)); seq $i >one/$((i % 7))/$i; done
        git -C one add -A
        git -C one commit -q -m first
        git clone -q --no-local one two
        test -z "$(git -C two status --porcelain)"
        echo more >>two/3/3
        test "$(git -C two status --porcelain)" = ' M 3/3'
        git -C two commit -q -a -m second
        git -C two fsck --strict
        git -C two gc -q
        git -C one pull -q ../two HEAD
        test "$(git -C one log --oneline | wc -l)" = 2
        sqlite3 base 'create table t(a, b);
            with recursive c(x) as (select 1 union all select x + 1 from c where x < 2000)
            insert into t select x, hex(randomblob(50)) from c;
            create index i on t(b);
            delete from t where a % 3 = 0;
            vacuum'
        test "$(sqlite3 base 'pragma integrity_check; select count(*) from t')" = $'ok\n1334'
    "#;
    let done = Command::new("bash")
        .args(["-euc", script])
        .current_dir(mounted.path())
        .output()
        .unwrap();
    assert!(done.status.success(), "{done:?}");
}

#[test]
fn who_supervises_is_told() {
    let scratch = Scratch::new();
    let path = scratch.path().join("notify");
    let supervisor = UnixDatagram::bind(&path).unwrap();
    supervisor.set_read_timeout(Some(PATIENCE)).unwrap();
    let heard = || {
        let mut buffer = [0; 100];
        let length = supervisor.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    };
    let listen = format!("unix:{}", scratch.path().join("socket").display());
    let mut served = Command::new(EXTFUSE)
        .args(["serve", "--listen", &listen, text(&scratch.source())])
        .env("NOTIFY_SOCKET", &path)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    assert_eq!(heard(), "READY=1\n");
    let mut mount = Command::new(EXTFUSE);
    mount
        .args(["mount", "-f", "--stock"])
        .args([format!("extfuse+{listen}").as_str(), text(&scratch.mountpoint())])
        .env("NOTIFY_SOCKET", &path);
    let mounted = Mounted::from_command(mount, &scratch.mountpoint());
    assert_eq!(heard(), "READY=1\n");
    drop(mounted);
    kill(Pid::from_raw(served.id().cast_signed()), Signal::SIGTERM).unwrap();
    assert_eq!(heard(), "STOPPING=1\n");
    assert!(served.wait().unwrap().success());
}

#[test]
fn over_a_socket_of_this_machine_and_with_names() {
    let scratch = Scratch::new();
    let socket = scratch.path().join("socket");
    scratch.write("file", "content");
    fs::create_dir(scratch.path().join("second")).unwrap();
    fs::write(scratch.path().join("second/other"), "2").unwrap();
    {
        let listen = format!("unix:{}", socket.display());
        let served = Served::start(&["--listen", &listen, text(&scratch.source())]);
        let mounted = mount(&served.url(), &scratch, &[]);
        assert_eq!(fs::read(mounted.join("file")).unwrap(), b"content");
        // Somebody listens there: it is not taken over.
        let second = Command::new(EXTFUSE)
            .args(["serve", "--listen", &listen, text(&scratch.source())])
            .output()
            .unwrap();
        assert!(one_line(1, &second).contains("cannot listen"));
    }
    // Nobody has removed it: the server was killed.
    assert!(socket.exists());
    let second = format!("two={}", scratch.path().join("second").display());
    let listen = format!("unix:{}", socket.display());
    drop(Served::start(&["--listen", &listen, &second]));

    let first = format!("one={}", scratch.source().display());
    let served = Served::start(&["--insecure", "--listen", "localhost:0", &first, &second]);
    let mounted = mount(&format!("{}/two", served.url()), &scratch, &[]);
    assert_eq!(fs::read(mounted.join("other")).unwrap(), b"2");
    drop(mounted);
    let mountpoint = scratch.mountpoint();
    let none = extfuse(&["mount", "--stock", &served.url(), text(&mountpoint)]);
    assert!(one_line(1, &none).contains("export"), "{none:?}");
}

#[test]
fn a_read_only_export_and_a_read_only_mount_refuse_changes() {
    let scratch = Scratch::new();
    scratch.write("file", "content");
    for (export, options) in [(&["--read-only"][..], &[][..]), (&[], &["-o", "ro"])] {
        let served = Served::tcp(&scratch.source(), export);
        let mounted = mount(&served.url(), &scratch, options);
        assert_eq!(fs::read(mounted.join("file")).unwrap(), b"content");
        let error = fs::write(mounted.join("file"), "").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ReadOnlyFilesystem);
    }
}

#[test]
fn without_the_token_nothing_is_served_and_nobody_is_believed() {
    let scratch = Scratch::new();
    scratch.write("file", "content");
    let right = token_file(&scratch, TOKEN);
    let wrong = token_file(&scratch, b"sixteen bytes, wrong");
    let short = token_file(&scratch, b"short");
    let mountpoint = scratch.mountpoint();
    let served = Served::tcp(&scratch.source(), &["--token-file", text(&right)]);
    let refused = |url: &str, more: &[&str]| {
        let arguments = [&["mount", "--stock"], more, &[url, text(&mountpoint)]].concat();
        one_line(1, &extfuse(&arguments))
    };
    assert!(refused(&served.url(), &[]).contains("token"));
    assert!(refused(&served.url(), &["--token-file", text(&wrong)]).contains("token"));
    assert!(refused(&served.url(), &["--token-file", text(&short)]).contains("16"));
    {
        let mounted = mount(&served.url(), &scratch, &["--token-file", text(&right)]);
        assert_eq!(fs::read(mounted.join("file")).unwrap(), b"content");
        fs::write(mounted.join("new"), vec![7; 300_000]).unwrap();
        assert_eq!(fs::read(scratch.source().join("new")).unwrap(), vec![7; 300_000]);
    }
    // A server that wants no token proves nothing.
    let open = Served::tcp(&scratch.source(), &[]);
    assert!(refused(&open.url(), &["--token-file", text(&right)]).contains("token"));
}

#[test]
fn beyond_this_machine_only_if_that_is_meant() {
    let scratch = Scratch::new();
    let (source, mountpoint) = (scratch.source(), scratch.mountpoint());
    let serve = extfuse(&["serve", "--listen", "0.0.0.0:0", text(&source)]);
    assert!(one_line(2, &serve).contains("--insecure"));
    // Not even to every user of this machine.
    let serve = extfuse(&["serve", "--listen", "127.0.0.1:0", text(&source)]);
    assert!(one_line(2, &serve).contains("--token-file"));
    let mount = extfuse(&["mount", "extfuse://192.0.2.1:9", text(&mountpoint)]);
    assert!(one_line(2, &mount).contains("--insecure"));
    for wrong in [
        &["serve", "--listen", "nowhere", text(&source)][..],
        &["serve", "--listen", "127.0.0.1:0"],
        &["mount", "extfuse://", text(&mountpoint)],
        &["mount", "--exclusive", "extfuse://127.0.0.1:9", text(&mountpoint)],
        &[
            "mount",
            "--no-handlers",
            "extfuse://127.0.0.1:9",
            text(&mountpoint),
        ],
        &["mount", "--timeout", "3", text(&source), text(&mountpoint)],
    ] {
        one_line(2, &extfuse(wrong));
    }
    let missing = extfuse(&["serve", "--insecure", "--listen", "127.0.0.1:0", "/nonexistent"]);
    assert!(one_line(1, &missing).contains("/nonexistent"));
    let nobody = extfuse(&["mount", "--stock", "extfuse://127.0.0.1:1", text(&mountpoint)]);
    assert!(one_line(1, &nobody).contains("127.0.0.1:1"));
}

#[test]
fn when_the_server_is_gone_everybody_gets_an_error_soon_and_the_mount_can_go() {
    let (scratch, served, mounted) = both(&["--on-disconnect", "eio"]);
    scratch.write("file", "content");
    let mut open = File::open(mounted.join("file")).unwrap();
    served.signal(Signal::SIGKILL);
    let start = Instant::now();
    eventually(|| fs::metadata(mounted.join("file")).is_err());
    let error = fs::metadata(mounted.join("file")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    let mut all = String::new();
    assert!(open.read_to_string(&mut all).is_err());
    assert!(start.elapsed() < PATIENCE);
    drop(open);
    drop(mounted);
}

#[test]
fn when_the_server_is_started_again_the_mount_goes_on() {
    let (scratch, mut served, mounted) = both(&[]);
    fs::create_dir(mounted.join("folder")).unwrap();
    scratch.write("folder/file", "content");
    let mut open = File::open(mounted.join("folder/file")).unwrap();
    let address = served.address.clone();
    for _ in 0..3 {
        let old = fs::metadata(mounted.join("folder/file")).unwrap().ino();
        served.signal(Signal::SIGKILL);
        served.child.wait().unwrap();
        let reader = {
            let path = mounted.join("folder/file");
            thread::spawn(move || fs::read(path))
        };
        // Somebody who asks meanwhile waits, or was on the way when it broke.
        served = Served::start(&["--listen", &address, "--insecure", text(&scratch.source())]);
        match reader.join().unwrap() {
            Ok(read) => assert_eq!(read, b"content"),
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EIO)),
        }
        eventually(|| fs::read(mounted.join("folder/file")).is_ok_and(|read| read == b"content"));
        assert_eq!(fs::metadata(mounted.join("folder/file")).unwrap().ino(), old);
        // What was open was open on the other server.
        let mut all = String::new();
        let error = open
            .seek(SeekFrom::Start(0))
            .and_then(|_| open.read_to_string(&mut all));
        assert_eq!(error.unwrap_err().raw_os_error(), Some(libc::ESTALE));
        open = File::open(mounted.join("folder/file")).unwrap();
    }
}

#[test]
fn a_server_that_stalls_keeps_nobody_for_longer_than_the_timeout() {
    let (scratch, served, mounted) = both(&["--timeout", "2"]);
    scratch.write("file", "content");
    scratch.write("large", &"content ".repeat(1 << 18));
    fs::metadata(mounted.join("file")).unwrap();
    let large = File::open(mounted.join("large")).unwrap();
    let mut part = vec![0; 128 << 10];
    // Over a connection that is for data: what is ahead of it is read over others.
    large.read_exact_at(&mut part, 0).unwrap();
    served.signal(Signal::SIGSTOP);
    let start = Instant::now();
    let readers: Vec<_> = (0..4)
        .map(|_| {
            let path = mounted.join("file");
            thread::spawn(move || fs::metadata(path).unwrap_err().raw_os_error())
        })
        .collect();
    let errno = large
        .read_exact_at(&mut part, 1 << 20)
        .unwrap_err()
        .raw_os_error();
    for errno in readers
        .into_iter()
        .map(|reader| reader.join().unwrap())
        .chain([errno])
    {
        assert!(matches!(errno, Some(libc::EIO | libc::ETIMEDOUT)), "{errno:?}");
    }
    let took = start.elapsed();
    assert!(took > Duration::from_secs(1) && took < PATIENCE, "{took:?}");
    served.signal(Signal::SIGCONT);
}

#[test]
fn a_server_that_is_told_to_end_ends_well() {
    let (scratch, mut served, mounted) = both(&[]);
    fs::write(mounted.join("file"), "content").unwrap();
    served.signal(Signal::SIGTERM);
    assert!(served.child.wait().unwrap().success());
    assert_eq!(fs::read(scratch.source().join("file")).unwrap(), b"content");
}

#[test]
fn files_stay_open_and_nothing_is_done_twice_though_the_line_breaks() {
    let scratch = Scratch::new();
    let served = Served::tcp(&scratch.source(), &[]);
    let link = Link::to(&served.address.parse().unwrap());
    let mounted = mount(&format!("extfuse://{}", link.address()), &scratch, &[]);
    let mut log = OpenOptions::new()
        .append(true)
        .create_new(true)
        .open(mounted.join("log"))
        .unwrap();
    let mut whole = String::new();
    for round in 0..40 {
        let line = format!("{round}\n");
        whole += &line;
        log.write_all(line.as_bytes()).unwrap();
        let cutter = thread::scope(|scope| {
            let cutter = scope.spawn(|| link.cut());
            // Each fails if it is done twice, or not at all.
            let (name, other) = (format!("made-{round}"), format!("moved-{round}"));
            fs::create_dir(mounted.join(&name)).unwrap();
            fs::rename(mounted.join(&name), mounted.join(&other)).unwrap();
            fs::remove_dir(mounted.join(&other)).unwrap();
            cutter.join()
        });
        cutter.unwrap();
    }
    log.sync_all().unwrap();
    assert_eq!(fs::read_to_string(scratch.source().join("log")).unwrap(), whole);
    assert_eq!(fs::read_to_string(mounted.join("log")).unwrap(), whole);
    let remote = mounted.report().remote.unwrap();
    assert!(remote.connected && remote.connections > 20, "{remote:?}");
}
