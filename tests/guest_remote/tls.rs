// SPDX-License-Identifier: MIT OR Apache-2.0
//! Over TLS, with the kernel's and without.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use extfuse::remote::server::{Export, Options, Server};
use extfuse::remote::tls::ServerTls;
use extfuse::remote::wire;

use crate::certificates::{Authority, Identity};
use crate::common::{EXTFUSE, Mounted, Scratch, eventually};
use crate::tls_ends;

/// The kernel cannot load the module `tls`, until this is dropped.
struct Without;

impl Without {
    const CONF: &str = "/etc/modprobe.d/extfuse-test-tls.conf";

    fn begin() -> Self {
        fs::write(Self::CONF, "install tls /bin/false\n").unwrap();
        // What had keys of it before may not have gone yet.
        eventually(|| !Path::new("/sys/module/tls").exists() || run("rmmod", &["tls"]));
        Self
    }
}

impl Drop for Without {
    fn drop(&mut self) {
        let _ = fs::remove_file(Self::CONF);
    }
}

fn run(program: &str, arguments: &[&str]) -> bool {
    let output = Command::new(program).args(arguments).output().unwrap();
    output.status.success()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// What the kernel's TLS has done, and has to do now.
fn counters() -> BTreeMap<String, u64> {
    let table = fs::read_to_string("/proc/net/tls_stat").unwrap();
    let rows = table
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>());
    rows.map(|row| (row[0].to_owned(), row[1].parse().unwrap()))
        .collect()
}

/// Threads of a process that do TLS.
fn pumps(pid: u32) -> usize {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let names = tasks.filter_map(|task| fs::read_to_string(task.path().join("comm")).ok());
    names.filter(|name| name.trim() == "extfuse-tls").count()
}

/// A directory that is served and mounted, both over TLS, by processes of their own.
struct Scene {
    mounted: Mounted,
    server: Child,
    address: String,
    identity: Identity,
    token: PathBuf,
    scratch: Scratch,
}

impl Scene {
    fn new() -> Self {
        let scratch = Scratch::new();
        let authority = Authority::new(scratch.path(), "authority");
        let identity = authority.of("server", "127.0.0.1");
        let token = scratch.path().join("token");
        fs::write(&token, [7; 32]).unwrap();
        let (server, address) = serve(&scratch, &identity, &token, "127.0.0.1:0");
        let url = format!("extfuse://{address}");
        let arguments = [
            "--require-module",
            "--tls",
            "--tls-ca",
            text(&authority.own.certificate),
            "--token-file",
            text(&token),
        ];
        Self {
            mounted: Mounted::start(Path::new(&url), &scratch.mountpoint(), &arguments),
            server,
            address,
            identity,
            token,
            scratch,
        }
    }

    /// What is written here is there, and what is there is read here.
    fn use_it(&self, mark: u8) {
        let content: Vec<u8> = (0..300_000_u32).map(|i| (i % 251) as u8 ^ mark).collect();
        let name = format!("written-{mark}");
        fs::write(self.mounted.join(&name), &content).unwrap();
        assert!(fs::read(self.scratch.source().join(name)).unwrap() == content);
        let name = format!("read-{mark}");
        fs::write(self.scratch.source().join(&name), &content).unwrap();
        assert!(fs::read(self.mounted.join(&name)).unwrap() == content);
        // When it has not changed for a while, the server need not look at it any more.
        thread::sleep(Duration::from_millis(3500));
        for _ in 0..3 {
            fs::write("/proc/sys/vm/drop_caches", "1").unwrap();
            assert!(fs::read(self.mounted.join(&name)).unwrap() == content);
        }
    }

    /// The server is killed, and another one is there.
    fn restart(&mut self) {
        self.server.kill().unwrap();
        self.server.wait().unwrap();
        (self.server, _) = serve(&self.scratch, &self.identity, &self.token, &self.address);
    }

    /// Threads that do the TLS of the server, and of the client.
    fn pumps(&self) -> [usize; 2] {
        [self.server.id(), self.mounted.pid().as_raw().cast_unsigned()].map(pumps)
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.mounted.signal(nix::sys::signal::Signal::SIGTERM);
        self.mounted.wait();
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

fn serve(scratch: &Scratch, identity: &Identity, token: &Path, listen: &str) -> (Child, String) {
    let mut child = Command::new(EXTFUSE)
        .args(["serve", "--listen", listen, "--token-file", text(token)])
        .args(["--tls-cert", text(&identity.certificate)])
        .args(["--tls-key", text(&identity.key)])
        .arg(scratch.source())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let address = line.strip_prefix("extfuse: serving on ").expect(&line).trim();
    (child, address.to_owned())
}

#[test]
fn the_kernel_does_the_tls_of_both_ends_where_it_can() {
    assert!(run("modprobe", &["tls"]));
    let now = || ["TlsCurrTxSw", "TlsCurrRxSw"].map(|name| counters()[name]);
    eventually(|| now() == [0, 0]);
    let mut scene = Scene::new();
    assert_eq!((now(), scene.pumps()), ([2, 2], [0, 0]));
    scene.use_it(0);
    // And so when the client has connected anew.
    scene.restart();
    scene.use_it(0x55);
    // Both ends of each connection, those for data among them; the server's of before go.
    let in_pairs = |[tx, rx]: [u64; 2]| tx == rx && tx % 2 == 0 && (4..=18).contains(&tx);
    eventually(|| in_pairs(now()));
    assert_eq!(scene.pumps(), [0, 0]);
    // What the kernel has decrypted goes from the socket to the application.
    let remote = scene.mounted.report().remote.unwrap();
    assert!(remote.filled >= 600_000 && remote.copied == 0, "{remote:?}");
    drop(scene);
    eventually(|| now() == [0, 0]);
    assert_eq!(counters()["TlsDecryptError"], 0);
}

#[test]
fn what_is_no_data_keeps_nobody_waiting_for_the_kernel() {
    assert!(run("modprobe", &["tls"]));
    let scratch = Scratch::new();
    let authority = Authority::new(scratch.path(), "authority");
    let identity = authority.of("server", "127.0.0.1");
    let tls = ServerTls::new(&identity.certificate, &identity.key, None).unwrap();
    let exports = vec![Export {
        name: wire::Export::new("").unwrap(),
        directory: scratch.source(),
        read_only: false,
    }];
    let options = Options {
        tls: Some(tls),
        ..Options::default()
    };
    let server = Server::bind(&"127.0.0.1:0".parse().unwrap(), exports, options).unwrap();
    let (address, stopper) = (server.address().unwrap().to_string(), server.stopper());
    let server = thread::spawn(move || server.serve().unwrap());
    assert!(tls_ends::by_kernel());
    tls_ends::server_hears_what_is_no_data(&authority, &address);
    tls_ends::client_hears_what_is_no_data(&authority, &identity);
    stopper.stop();
    server.join().unwrap();
}

#[test]
fn threads_do_the_tls_where_the_kernel_has_none() {
    let _without = Without::begin();
    let mut scene = Scene::new();
    assert!(!Path::new("/proc/net/tls_stat").exists());
    assert_eq!(scene.pumps(), [1, 1]);
    scene.use_it(0);
    scene.restart();
    scene.use_it(0x55);
    // One for each connection, those for data among them; the client's of before go.
    eventually(|| {
        let [served, mounted] = scene.pumps();
        served == mounted && (2..=9).contains(&served)
    });
    assert!(scene.mounted.report().remote.unwrap().filled >= 600_000);
}
