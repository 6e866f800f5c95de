// SPDX-License-Identifier: MIT OR Apache-2.0
//! What clients keep of a server's answers, and what happens to it when somebody changes something. The clients' kernels
//! are maps and stamps in memory: what they would serve, a kernel would.

mod histories;
mod leases;
#[path = "../common/linear.rs"]
mod linear;
#[path = "../common/link.rs"]
mod link;
#[path = "../common/histories.rs"]
mod players;
mod resumed;

use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use extfuse::Kernel;
use extfuse::abi::NodeId;
use extfuse::ebpf::{Cache, NodeIo, Validity};
use extfuse::remote::Address;
use extfuse::remote::client::{About, Answer, Connection, Disconnected, Target};
use extfuse::remote::server::{Export, Options, Server, Stopper};
use extfuse::remote::wire::message::{
    Attr, Caller, Create, Empty, Entry, Lookup, Release, Rename, SetAttr, Unlink,
};
use extfuse::remote::wire::{self, Flags, Name, Reply, Request};
use nix::errno::Errno;

const ROOT: u64 = 1;

/// A server in this process.
struct Inside {
    address: Address,
    stopper: Stopper,
    thread: Option<thread::JoinHandle<()>>,
}

impl Inside {
    fn start(directory: &Path, address: &str, options: Options) -> Self {
        let exports = vec![Export {
            name: wire::Export::new("").unwrap(),
            directory: directory.to_owned(),
            read_only: false,
        }];
        let server = Server::bind(&address.parse().unwrap(), exports, options).unwrap();
        Self {
            address: server.address().unwrap(),
            stopper: server.stopper(),
            thread: Some(thread::spawn(move || server.serve().unwrap())),
        }
    }

    fn target(&self) -> Target {
        Target {
            address: self.address.clone(),
            export: wire::Export::new("").unwrap(),
            token: None,
            keeps: true,
            disconnected: Disconnected::Fail,
            tls: None,
            timeout: Duration::from_secs(10),
        }
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        self.stopper.stop();
        let ended = self.thread.take().unwrap().join();
        assert!(thread::panicking() || ended.is_ok());
    }
}

fn name(name: &str) -> Name {
    Name::new(name).unwrap()
}

fn about(node: u64) -> About {
    About {
        node,
        ..About::default()
    }
}

/// A client, and a kernel that keeps whatever it is answered, as the module does.
struct Client {
    connection: Connection,
    cache: Arc<Cache>,
}

impl Client {
    fn connect(target: &Target) -> Self {
        let (connection, cache) = (Connection::open(target).unwrap(), Arc::new(Cache::in_memory()));
        connection.keep_in(Kernel::over(&cache));
        Self { connection, cache }
    }

    fn ask(&self, node: u64, request: &Request<'_>) -> Result<Answer, Errno> {
        self.connection.call(&about(node), request)
    }

    fn entry(&self, node: u64, request: &Request<'_>) -> Result<Entry, Errno> {
        match self.ask(node, request)?.reply().unwrap() {
            Reply::Lookup(entry) | Reply::Mkdir(entry) => Ok(entry),
            Reply::Create(created) => {
                let release = Request::Release(Release { owner: None });
                let at = About {
                    handle: created.handle,
                    ..about(created.entry.node)
                };
                // It was made, whatever comes of this.
                let _ = self.connection.call(&at, &release);
                Ok(created.entry)
            }
            reply => panic!("{reply:?}"),
        }
    }

    /// The node that a name stands for: from what the kernel keeps, if it is current.
    fn lookup(&self, parent: u64, leaf: &str) -> Result<u64, Errno> {
        let row = self.cache.entry(NodeId(parent), leaf.as_bytes());
        match row.map(|row| row.nodeid) {
            Some(0) => return Err(Errno::ENOENT),
            Some(node) => return Ok(node),
            None => {}
        }
        let at = self.cache.snapshot();
        let (dir, valid) = (NodeId(parent), Validity::UntilChanged);
        match self.entry(parent, &Request::Lookup(Lookup { name: name(leaf) })) {
            Ok(entry) => {
                let node = NodeId(entry.node);
                self.cache.publish_entry(dir, leaf.as_bytes(), node, 0, at, valid);
                Ok(entry.node)
            }
            Err(Errno::ENOENT) => {
                self.cache.publish_negative(dir, leaf.as_bytes(), at, valid);
                Err(Errno::ENOENT)
            }
            Err(errno) => Err(errno),
        }
    }

    /// The size of a node, in the same way.
    fn size(&self, node: u64) -> Result<u64, Errno> {
        match self.cache.attr(NodeId(node)) {
            Some(row) => Ok(row.attr.size),
            None => self.fresh(node).map(|attr| attr.size),
        }
    }

    fn fresh(&self, node: u64) -> Result<Attr, Errno> {
        let at = self.cache.snapshot();
        let answer = self.ask(node, &Request::Getattr(Empty))?;
        let Reply::Getattr(attr) = answer.reply().unwrap() else {
            panic!("{answer:?}")
        };
        let valid = Validity::UntilChanged;
        self.cache
            .publish_attr(NodeId(node), &attr.into(), NodeIo::Daemon, at, valid);
        Ok(attr)
    }

    fn create(&self, parent: u64, leaf: &str) -> Result<Entry, Errno> {
        let caller = Caller { uid: 0, gid: 0 };
        let create = Create {
            name: name(leaf),
            mode: 0o600,
            umask: 0,
            flags: libc::O_RDWR | libc::O_EXCL,
            caller,
        };
        self.change(&[(parent, leaf)], &[], || {
            self.entry(parent, &Request::Create(create))
        })
    }

    fn unlink(&self, parent: u64, leaf: &str) -> Result<(), Errno> {
        let unlink = Request::Unlink(Unlink { name: name(leaf) });
        self.change(&[(parent, leaf)], &[], || self.ask(parent, &unlink).map(drop))
    }

    fn rename(&self, parent: u64, leaf: &str, to: &str) -> Result<(), Errno> {
        let rename = Request::Rename(Rename {
            name: name(leaf),
            new_parent: parent,
            new_name: name(to),
            flags: 0,
            caller: Caller { uid: 0, gid: 0 },
        });
        self.change(&[(parent, leaf), (parent, to)], &[], || {
            self.ask(parent, &rename).map(drop)
        })
    }

    fn truncate(&self, node: u64, size: u64) -> Result<(), Errno> {
        let set = Request::Setattr(SetAttr {
            mode: None,
            uid: None,
            gid: None,
            size: Some(size),
            atime: None,
            mtime: None,
            handle: None,
        });
        self.change(&[], &[node], || self.ask(node, &set).map(drop))
    }

    /// What the module does of its own changes, by its table.
    fn change<R>(&self, names: &[(u64, &str)], nodes: &[u64], change: impl FnOnce() -> R) -> R {
        use extfuse::ebpf::Key;
        let names = names
            .iter()
            .map(|(parent, leaf)| Key::Entry(NodeId(*parent), leaf.as_bytes()));
        let parents = names.clone().map(|key| match key {
            Key::Entry(parent, _) => Key::Attr(parent),
            key => key,
        });
        let nodes = nodes.iter().map(|node| Key::Attr(NodeId(*node)));
        let keys: Vec<_> = names.chain(parents).chain(nodes).collect();
        let _change = self.cache.change(&keys);
        change()
    }
}

/// Whether an answer may be kept.
fn kept(answer: &Answer) -> bool {
    answer.header.flags.contains(Flags::KEEP)
}
