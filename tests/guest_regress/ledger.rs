// SPDX-License-Identifier: MIT OR Apache-2.0
//! A daemon that keeps a ledger of its lookups: the kernel has to give back exactly what was handed out,
//! no matter how many lookups handlers answered. (`Stack` forgives what is too much.)

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, UNIX_EPOCH};

use extfuse::abi::{Counter, NodeId};
use extfuse::ebpf::{Cache, Capacity, Context, Learning, NodeIo, Stamps, Validity};
use extfuse::sys::device::Device;
use fuser::{
    Config, FileAttr, FileHandle, FileType, Filesystem, Generation, INodeNo, ReplyAttr, ReplyEntry, Request,
    Session, SessionACL,
};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tempfile::TempDir;

use crate::common::eventually;

const LOOKUP: usize = 1;
const FILE: NodeId = NodeId(2);

fn attr(ino: u64) -> FileAttr {
    let kind = match ino {
        1 => FileType::Directory,
        _ => FileType::RegularFile,
    };
    FileAttr {
        ino: INodeNo(ino),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind,
        perm: 0o755,
        nlink: 2,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

/// A file with two names; and how many of its lookups are out.
#[derive(Debug, Default)]
struct Ledger {
    handed_out: Arc<AtomicI64>,
    /// The lowest that it ever came to.
    lowest: Arc<Mutex<i64>>,
}

impl Filesystem for Ledger {
    fn lookup(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEntry) {
        self.handed_out.fetch_add(1, Ordering::SeqCst);
        reply.entry(&Duration::ZERO, &attr(FILE.0), Generation(0));
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&Duration::ZERO, &attr(ino.0));
    }

    fn forget(&self, _: &Request, ino: INodeNo, nlookup: u64) {
        if ino.0 == FILE.0 {
            let left = self.handed_out.fetch_sub(nlookup as i64, Ordering::SeqCst) - nlookup as i64;
            let mut lowest = self.lowest.lock().unwrap();
            *lowest = left.min(*lowest);
        }
    }
}

#[test]
fn lookups_are_given_back_exactly() {
    let at = TempDir::new().unwrap();
    let mut options = File::options();
    let device = options.read(true).write(true).open("/dev/extfuse").unwrap();
    let fd = OwnedFd::from(device);
    let data = format!("fd={},rootmode=40000,user_id=0,group_id=0", fd.as_raw_fd());
    let (kind, flags) = (Some("extfuse"), MsFlags::empty());
    mount(Some("ledger"), at.path(), kind, flags, Some(data.as_str())).unwrap();
    let device = Device::new(fd.try_clone().unwrap());
    let setup = device.setup().unwrap();
    let capacity = Capacity {
        entries: 64,
        attrs: 64,
        xattrs: 64,
    };
    let context = Context::attach(setup.conn, capacity, Learning::default()).unwrap();
    let stamps = Stamps::new(device.map_stamps().unwrap());
    let cache = Cache::new(stamps, context.maps().unwrap(), setup.key);
    let ledger = Ledger::default();
    let (handed_out, lowest) = (Arc::clone(&ledger.handed_out), Arc::clone(&ledger.lowest));
    let session = Session::from_fd(ledger, fd, SessionACL::All, Config::default()).unwrap();
    let served = thread::spawn(move || session.run());
    let [one, other] = ["one", "other"].map(|name| at.path().join(name));
    let answered = || {
        let counters = device.counters().unwrap();
        counters.count[LOOKUP][Counter::EXTFUSE_COUNT_RETURNED.0 as usize]
    };

    for round in 1..=3 {
        fs::metadata(&one).unwrap();
        fs::metadata(&one).unwrap();
        let asked = handed_out.load(Ordering::SeqCst);
        assert!(asked >= 2, "round {round}");
        let at_first = answered();
        // What the kernel keeps of an answer is no answer: each is one of a new row.
        let publish = |name: &str| {
            cache.invalidate_entry(NodeId::ROOT, name.as_bytes());
            let now = cache.snapshot();
            cache.publish_entry(
                NodeId::ROOT,
                name.as_bytes(),
                FILE,
                0,
                now,
                Validity::UntilChanged,
            );
        };
        let now = cache.snapshot();
        cache.publish_attr(FILE, &attr(FILE.0), NodeIo::Daemon, now, Validity::UntilChanged);
        for _ in 0..50 {
            publish("one");
            publish("other");
            // The first is revalidated; the second has no dentry yet, and the inode is there.
            fs::metadata(&one).unwrap();
            fs::metadata(&other).unwrap();
        }
        assert_eq!(answered() - at_first, 100, "round {round}");
        assert_eq!(handed_out.load(Ordering::SeqCst), asked, "the daemon was asked");
        eventually(|| {
            fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
            handed_out.load(Ordering::SeqCst) <= 0
        });
        assert_eq!(
            (handed_out.load(Ordering::SeqCst), *lowest.lock().unwrap()),
            (0, 0)
        );
    }
    umount2(at.path(), MntFlags::empty()).unwrap();
    served.join().unwrap().unwrap();
}
