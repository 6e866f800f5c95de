// SPDX-License-Identifier: MIT OR Apache-2.0
//! A directory that is served, mounted: by the command, on this machine. Needs root.

mod common;
#[path = "fsx/exerciser.rs"]
mod exerciser;

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, ErrorKind, Read, Seek, SeekFrom, Write};
use std::net::TcpStream;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use common::{EXTFUSE, Mounted, PATIENCE, Scratch, eventually, extfuse, one_line};
use exerciser::{Mode, Run};
use extfuse::remote::server::{Export, Options, Server, Stopper};
use extfuse::remote::wire::message::{Hello, Open, Read as ReadRequest, Versions};
use extfuse::remote::wire::{self, FrameReader, FrameWriter, Header, Reply, Request, Side, Sizes};
use extfuse::remote::{Address, client};
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
    let seed = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
    for mode in Mode::ALL {
        let run = Run {
            dir: mounted.path().to_owned(),
            ops: 3000,
            seed,
            mode,
        };
        println!("{run}");
        run.run().unwrap_or_else(|error| panic!("{error}"));
    }
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
        // It is no end of a file that somebody else could take.
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
    let (scratch, served, mounted) = both(&[]);
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
fn a_server_that_stalls_keeps_nobody_for_longer_than_the_timeout() {
    let (scratch, served, mounted) = both(&["--timeout", "2"]);
    scratch.write("file", "content");
    fs::metadata(mounted.join("file")).unwrap();
    served.signal(Signal::SIGSTOP);
    let start = Instant::now();
    let readers: Vec<_> = (0..4)
        .map(|_| {
            let path = mounted.join("file");
            thread::spawn(move || fs::metadata(path).unwrap_err().raw_os_error())
        })
        .collect();
    for reader in readers {
        let errno = reader.join().unwrap();
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

/// A server in this process.
struct Inside {
    address: Address,
    stopper: Stopper,
    thread: Option<thread::JoinHandle<()>>,
}

impl Inside {
    fn start(directory: &Path, options: Options) -> Self {
        let exports = vec![Export {
            name: wire::Export::new("").unwrap(),
            directory: directory.to_owned(),
            read_only: false,
        }];
        let server = Server::bind(&"127.0.0.1:0".parse().unwrap(), exports, options).unwrap();
        Self {
            address: server.address().unwrap(),
            stopper: server.stopper(),
            thread: Some(thread::spawn(move || server.serve().unwrap())),
        }
    }

    fn connect(&self) -> TcpStream {
        let Address::Tcp(address) = &self.address else {
            unreachable!()
        };
        TcpStream::connect(address).unwrap()
    }

    /// A client that knows how, and is served.
    fn greeted(&self) -> TcpStream {
        let stream = self.connect();
        let hello = Request::Hello(Hello {
            versions: Versions { min: 1, max: 1 },
            sizes: Sizes::default(),
            nonce: [1; 32],
            export: wire::Export::new("").unwrap(),
            resume: None,
        });
        send(&stream, Header::request(hello.kind(), 1), &hello);
        assert!(matches!(receive(&stream), (_, Some(()))));
        stream
    }

    fn target(&self) -> client::Target {
        client::Target {
            address: self.address.clone(),
            export: wire::Export::new("").unwrap(),
            token: None,
            timeout: Duration::from_secs(10),
        }
    }

    fn still_serves(&self) {
        client::Connection::open(&self.target()).unwrap();
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        self.stopper.stop();
        let ended = self.thread.take().unwrap().join();
        if !thread::panicking() {
            ended.unwrap();
        }
    }
}

fn send(stream: &TcpStream, header: Header, request: &Request<'_>) {
    FrameWriter::new(stream, Side::Client)
        .write_frame(&header, 0, &[&request.payload().unwrap()])
        .unwrap();
}

/// The header of a reply, and that it is one without an error.
fn receive(stream: &TcpStream) -> (Header, Option<()>) {
    let mut payload = Vec::new();
    let mut reader = FrameReader::new(stream, Side::Server);
    let frame = reader.read_frame(&mut payload).unwrap().unwrap();
    let good = frame.header.status == 0 && Reply::decode(&frame.header, frame.payload).is_ok();
    (frame.header, good.then_some(()))
}

/// Whether the other end has closed it, within our patience.
fn is_closed(mut stream: &TcpStream) -> bool {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut rest = Vec::new();
    match stream.read_to_end(&mut rest) {
        Ok(_) => true,
        Err(error) => error.kind() == ErrorKind::ConnectionReset,
    }
}

#[test]
fn a_thousand_who_say_nothing_keep_nobody_out() {
    let scratch = Scratch::new();
    let options = Options {
        strangers: 100,
        greeting: PATIENCE * 10,
        ..Options::default()
    };
    let server = Inside::start(&scratch.source(), options);
    let silent: Vec<_> = (0..1000).map(|_| server.connect()).collect();
    let start = Instant::now();
    server.still_serves();
    assert!(start.elapsed() < PATIENCE, "{:?}", start.elapsed());
    assert!(is_closed(&silent[0]));
    // It had to make room, not merely to go in its time.
    assert!(
        start.elapsed() < Options::default().greeting / 2,
        "{:?}",
        start.elapsed()
    );
}

#[test]
fn as_many_are_served_as_there_may_be_and_strangers_do_not_count() {
    let scratch = Scratch::new();
    let options = Options {
        connections: 2,
        strangers: 5,
        greeting: PATIENCE * 10,
        ..Options::default()
    };
    let server = Inside::start(&scratch.source(), options);
    let _silent: Vec<_> = (0..50).map(|_| server.connect()).collect();
    let (one, two) = (server.greeted(), server.greeted());
    let getattr = Request::Getattr(Default::default());
    let about = Header {
        node: 1,
        ..Header::request(getattr.kind(), 2)
    };
    for served in [&one, &two] {
        send(served, about, &getattr);
        assert!(receive(served).1.is_some());
    }
    assert!(is_closed(&server.connect()));
    drop(one);
    // Its place is free again, once its thread has ended.
    eventually(|| client::Connection::open(&server.target()).is_ok());
}

#[test]
fn whoever_says_half_a_word_or_trickles_is_sent_away_in_time() {
    let scratch = Scratch::new();
    let options = Options {
        greeting: Duration::from_secs(1),
        ..Options::default()
    };
    let server = Inside::start(&scratch.source(), options);
    let start = Instant::now();
    let mut trickling = server.connect();
    let silent = server.connect();
    let hello = Header::request(wire::Kind::Hello, 1).encode(102).unwrap();
    for byte in hello {
        if trickling.write_all(&[byte]).is_err() {
            break;
        }
        thread::sleep(Duration::from_millis(50));
    }
    assert!(is_closed(&silent) && is_closed(&trickling));
    assert!(start.elapsed() < PATIENCE, "{:?}", start.elapsed());
}

#[test]
fn who_has_not_greeted_is_served_nothing_and_who_has_not_twice() {
    let scratch = Scratch::new();
    let server = Inside::start(&scratch.source(), Options::default());
    let stranger = server.connect();
    let getattr = Request::Getattr(Default::default());
    let header = Header {
        node: 1,
        ..Header::request(getattr.kind(), 1)
    };
    send(&stranger, header, &getattr);
    assert!(is_closed(&stranger));
    let known = server.greeted();
    send(&known, header, &getattr);
    assert!(receive(&known).1.is_some());
    // A node that it was not given, and a handle.
    send(&known, Header { node: 77, ..header }, &getattr);
    assert_eq!(receive(&known).0.status, libc::ESTALE as u32);
    let read = Request::Read(ReadRequest { size: 5 });
    send(&known, Header::request(read.kind(), 2), &read);
    assert_eq!(receive(&known).0.status, libc::EBADF as u32);
    // A pipe would keep a thread for good.
    let open = Request::Open(Open {
        flags: libc::O_RDONLY,
    });
    send(
        &known,
        Header {
            node: 1,
            ..Header::request(open.kind(), 3)
        },
        &open,
    );
    assert_eq!(receive(&known).0.status, libc::EINVAL as u32);
    // Nothing leads out of the export: a name is one component, and a link is not followed.
    let up = Header {
        node: 1,
        ..Header::request(wire::Kind::Lookup, 4)
    };
    for name in ["..", ".", "a/b", "a\0b", ""] {
        let payload = [&[name.len() as u8], name.as_bytes()].concat();
        FrameWriter::new(&known, Side::Client)
            .write_frame(&up, 0, &[&payload])
            .unwrap();
        assert_eq!(receive(&known).0.status, libc::EPROTO as u32, "{name:?}");
    }
    symlink("/etc", scratch.source().join("link")).unwrap();
    let lookup = Request::Lookup(wire::message::Lookup {
        name: wire::Name::new("link").unwrap(),
    });
    send(&known, up, &lookup);
    let mut payload = Vec::new();
    let mut reader = FrameReader::new(&known, Side::Server);
    let frame = reader.read_frame(&mut payload).unwrap().unwrap();
    let Reply::Lookup(link) = Reply::decode(&frame.header, frame.payload).unwrap() else {
        unreachable!()
    };
    let below = Request::Lookup(wire::message::Lookup {
        name: wire::Name::new("passwd").unwrap(),
    });
    for (request, node) in [(&below, link.node), (&open, link.node)] {
        send(
            &known,
            Header {
                node,
                ..Header::request(request.kind(), 5)
            },
            request,
        );
        assert!(matches!(
            receive(&known).0.status as i32,
            libc::ENOTDIR | libc::EINVAL
        ));
    }
    server.still_serves();
}

#[test]
fn a_proof_that_is_none_opens_nothing() {
    let scratch = Scratch::new();
    let options = Options {
        token: Some(wire::auth::Token::new(TOKEN).unwrap()),
        ..Options::default()
    };
    let server = Inside::start(&scratch.source(), options);
    let ask = |request: &Request<'_>| {
        let stream = server.greeted();
        let header = Header {
            node: 1,
            ..Header::request(request.kind(), 2)
        };
        send(&stream, header, request);
        stream
    };
    let guess = ask(&Request::Authenticate(wire::message::Proof([7; 32])));
    assert_eq!(receive(&guess).0.status, libc::EACCES as u32);
    assert!(is_closed(&guess));
    assert!(is_closed(&ask(&Request::Getattr(Default::default()))));
}

#[test]
fn a_listing_is_no_longer_than_what_was_asked_for() {
    let scratch = Scratch::new();
    for i in 0..300 {
        File::create(scratch.source().join(format!("{i:0100}"))).unwrap();
    }
    let server = Inside::start(&scratch.source(), Options::default());
    let stream = server.greeted();
    let ask = |header: Header, request: &Request<'_>| {
        send(&stream, header, request);
        let mut payload = Vec::new();
        let mut reader = FrameReader::new(&stream, Side::Server);
        let frame = reader.read_frame(&mut payload).unwrap().unwrap();
        (frame.header, frame.payload.to_vec())
    };
    let root = |kind, request| Header {
        node: 1,
        ..Header::request(kind, request)
    };
    let (header, payload) = ask(
        root(wire::Kind::Opendir, 2),
        &Request::Opendir(Default::default()),
    );
    let Reply::Opendir(opened) = Reply::decode(&header, &payload).unwrap() else {
        unreachable!()
    };
    let (mut offset, mut names) = (0, BTreeSet::new());
    loop {
        let readdir = Request::Readdir(wire::message::Readdir { size: 1000 });
        let at = Header {
            handle: opened.handle,
            offset,
            ..root(readdir.kind(), 3)
        };
        let (header, payload) = ask(at, &readdir);
        assert!(payload.len() <= 1000, "{}", payload.len());
        let Reply::Readdir(listing) = Reply::decode(&header, &payload).unwrap() else {
            unreachable!()
        };
        let Some(last) = listing.entries.last() else { break };
        offset = last.offset;
        names.extend(listing.entries.iter().map(|entry| entry.name.as_bytes().to_vec()));
    }
    assert_eq!(names.len(), 302);
    // No room for one is not the end.
    let readdir = Request::Readdir(wire::message::Readdir { size: 10 });
    let at = Header {
        handle: opened.handle,
        ..root(readdir.kind(), 4)
    };
    assert_eq!(ask(at, &readdir).0.status, libc::EINVAL as u32);
}

#[test]
fn nonsense_is_sent_away_and_hurts_nobody_else() {
    let scratch = Scratch::new();
    let server = Inside::start(&scratch.source(), Options::default());
    let seed = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
    println!("seed {seed}");
    let mut state = seed | 1;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for round in 0..300 {
        let mut stream = if round % 2 == 0 {
            server.connect()
        } else {
            server.greeted()
        };
        let mut bytes = Header::request(wire::Kind::ALL[round % wire::Kind::ALL.len()], 5)
            .encode(102)
            .unwrap();
        bytes.extend((0..random() % 300).map(|_| random() as u8));
        for _ in 0..random() % 4 {
            let at = random() as usize % bytes.len();
            bytes[at] ^= 1 << (random() % 8);
        }
        // It may be sent away in the middle.
        let _ = stream.write_all(&bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        assert!(is_closed(&stream), "round {round}");
    }
    server.still_serves();
}

#[test]
fn a_client_that_hardly_reads_is_sent_away_and_keeps_nobody() {
    let scratch = Scratch::new();
    fs::write(scratch.source().join("file"), vec![7; 1 << 20]).unwrap();
    let options = Options {
        sending: Duration::from_secs(1),
        ..Options::default()
    };
    let server = Inside::start(&scratch.source(), options);
    let greedy = server.greeted();
    let lookup = Request::Lookup(wire::message::Lookup {
        name: wire::Name::new("file").unwrap(),
    });
    send(
        &greedy,
        Header {
            node: 1,
            ..Header::request(lookup.kind(), 1)
        },
        &lookup,
    );
    let mut payload = Vec::new();
    let mut reader = FrameReader::new(&greedy, Side::Server);
    let frame = reader.read_frame(&mut payload).unwrap().unwrap();
    let Reply::Lookup(entry) = Reply::decode(&frame.header, frame.payload).unwrap() else {
        unreachable!()
    };
    let open = Request::Open(Open {
        flags: libc::O_RDONLY,
    });
    send(
        &greedy,
        Header {
            node: entry.node,
            ..Header::request(open.kind(), 2)
        },
        &open,
    );
    let frame = reader.read_frame(&mut payload).unwrap().unwrap();
    let Reply::Open(opened) = Reply::decode(&frame.header, frame.payload).unwrap() else {
        unreachable!()
    };
    let asking = Arc::new(greedy);
    let greedy = Arc::clone(&asking);
    let asked = thread::spawn(move || {
        let mut writer = FrameWriter::new(&*asking, Side::Client);
        let read = Request::Read(ReadRequest { size: 1 << 20 });
        for request in 3..1000 {
            let header = Header {
                node: entry.node,
                handle: opened.handle,
                ..Header::request(read.kind(), request)
            };
            if writer
                .write_frame(&header, 0, &[&read.payload().unwrap()])
                .is_err()
            {
                return;
            }
        }
    });
    server.still_serves();
    asked.join().unwrap();
    // Or next to never: there is always some of a frame that goes, and no frame in its time.
    for _ in 0..20 {
        if let Err(error) = (&*greedy).read_exact(&mut [0; 64 << 10]) {
            // Of what it has asked for not everything was heard.
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
            return;
        }
        thread::sleep(Duration::from_millis(300));
    }
    assert!(is_closed(&greedy));
}

#[test]
fn who_asks_one_thing_after_another_has_one_thread() {
    let scratch = Scratch::new();
    let server = Inside::start(&scratch.source(), Options::default());
    let stream = server.greeted();
    let answering = || {
        let tasks = fs::read_dir("/proc/self/task").unwrap();
        let names = tasks.map(|task| fs::read_to_string(task.unwrap().path().join("comm")).unwrap());
        names.filter(|name| name.trim() == "extfuse-answer").count()
    };
    assert_eq!(answering(), 0);
    let getattr = Request::Getattr(Default::default());
    for request in 0..100 {
        let header = Header {
            node: 1,
            ..Header::request(getattr.kind(), request)
        };
        send(&stream, header, &getattr);
        assert!(receive(&stream).1.is_some());
        // Its thread is free only when it has answered.
        thread::sleep(Duration::from_millis(2));
    }
    assert!((1..=3).contains(&answering()), "{}", answering());
}

#[test]
fn a_thousand_connections_leave_nothing_behind() {
    let scratch = Scratch::new();
    let server = Inside::start(&scratch.source(), Options::default());
    let descriptors = || fs::read_dir("/proc/self/fd").unwrap().count();
    let threads = || fs::read_dir("/proc/self/task").unwrap().count();
    server.still_serves();
    let before = (descriptors(), threads());
    for _ in 0..1000 {
        server.still_serves();
    }
    eventually(|| descriptors() <= before.0 + 2 && threads() <= before.1 + 2);
}

#[test]
fn a_socket_of_this_machine_is_served_to_whoever_may_open_it() {
    let scratch = Scratch::new();
    let socket = scratch.path().join("socket");
    let _served = Served::start(&[
        "--listen",
        &format!("unix:{}", socket.display()),
        text(&scratch.source()),
    ]);
    let _stream = UnixStream::connect(&socket).unwrap();
}
