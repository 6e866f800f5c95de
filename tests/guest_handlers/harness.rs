// SPDX-License-Identifier: MIT OR Apache-2.0
//! A directory mounted through the module from inside the test, so that the test holds the device;
//! and the program set that does what it is told.

use std::fs::{self, File};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use extfuse::abi::{Counter, Counters, Setup, Status};
use extfuse::fs::{Stack, StackOptions};
use extfuse::sys::bpf::update_struct_ops;
use extfuse::sys::device::Device;
use fuser::{Config, Notifier, Session, SessionACL};
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{Link, OpenObject};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tempfile::TempDir;

#[allow(
    dead_code,
    missing_debug_implementations,
    unsafe_op_in_unsafe_fn,
    unused_qualifications,
    clippy::all,
    clippy::undocumented_unsafe_blocks,
    clippy::wildcard_imports
)]
mod skeleton {
    include!(concat!(env!("OUT_DIR"), "/hostile.skel.rs"));
}

pub use skeleton::types::bss as Seen;
use skeleton::{HostileSkel, HostileSkelBuilder};

pub const LOOKUP: u32 = 1;
pub const FORGET: u32 = 2;
pub const GETATTR: u32 = 3;
pub const MKDIR: u32 = 9;
pub const GETXATTR: u32 = 22;
pub const LISTXATTR: u32 = 23;

/// A mount of a directory on ext4, served by this process. Unmounted on drop.
pub struct Mounted {
    pub source: PathBuf,
    pub at: PathBuf,
    pub notifier: Notifier,
    fd: Option<Arc<OwnedFd>>,
    device: Option<Device<Arc<OwnedFd>>>,
    served: Option<JoinHandle<io::Result<()>>>,
    _places: [TempDir; 2],
}

impl Mounted {
    /// With SETUP, as a daemon does that will attach programs.
    pub fn new() -> Self {
        Self::with(true)
    }

    pub fn with(set_up: bool) -> Self {
        let source = TempDir::new_in("/mnt/ext4").expect("the guest has an ext4 at /mnt/ext4");
        let at = TempDir::new().unwrap();
        let fd = OwnedFd::from(
            File::options()
                .read(true)
                .write(true)
                .open("/dev/extfuse")
                .expect("the module is loaded: scripts/vm"),
        );
        let data = format!(
            "fd={},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions",
            fd.as_raw_fd()
        );
        mount(
            Some("test"),
            at.path(),
            Some("extfuse"),
            MsFlags::empty(),
            Some(data.as_str()),
        )
        .unwrap();
        let ours = Arc::new(fd.try_clone().unwrap());
        let device = Device::new(Arc::clone(&ours));
        if set_up {
            device.setup().unwrap();
        }
        let stack = Stack::new(source.path(), StackOptions::default()).unwrap();
        let mut config = Config::default();
        config.n_threads = Some(2);
        let session = Session::from_fd(stack, fd, SessionACL::All, config).unwrap();
        let notifier = session.notifier();
        let served = thread::spawn(move || session.run());
        let mounted = Self {
            source: source.path().to_path_buf(),
            at: at.path().to_path_buf(),
            notifier,
            fd: Some(ours),
            device: Some(device),
            served: Some(served),
            _places: [source, at],
        };
        // INIT is answered before the handshake returns, but not yet taken by the kernel.
        fs::metadata(&mounted.at).unwrap();
        mounted
    }

    pub fn device(&self) -> &Device<Arc<OwnedFd>> {
        self.device.as_ref().unwrap()
    }

    pub fn raw_device(&self) -> &OwnedFd {
        self.fd.as_ref().unwrap()
    }

    pub fn setup(&self) -> Setup {
        self.device().setup().unwrap()
    }

    pub fn status(&self) -> Status {
        self.device().status().unwrap()
    }

    pub fn reason(&self) -> String {
        let reason = self.status().reason;
        let text = reason.split(|byte| *byte == 0).next().unwrap();
        String::from_utf8(text.to_vec()).unwrap()
    }

    pub fn count(&self, opcode: u32, what: Counter) -> u64 {
        let counters: Counters = self.device().counters().unwrap();
        counters.count[opcode as usize][what.0 as usize]
    }

    pub fn unmount(&mut self) {
        umount2(&self.at, MntFlags::empty()).unwrap();
        self.join();
    }

    /// Through the control file system; the mount stays, dead.
    pub fn abort(&mut self) {
        let control = TempDir::new().unwrap();
        mount(
            Some("none"),
            control.path(),
            Some("extfusectl"),
            MsFlags::empty(),
            None::<&str>,
        )
        .unwrap();
        let minor = self.setup().dev & 0xff | (self.setup().dev >> 12 & !0xff);
        let done = fs::write(control.path().join(minor.to_string()).join("abort"), "1");
        umount2(control.path(), MntFlags::empty()).unwrap();
        done.unwrap();
        self.join();
    }

    fn join(&mut self) {
        if let Some(served) = self.served.take() {
            // An error here is how fuser reports an aborted connection.
            let _ended = served.join().unwrap();
        }
    }

    /// Gives every node that nobody uses back to the daemon.
    pub fn forget_unused(&self) {
        fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
    }

    /// The nodeid of what is at `path`.
    pub fn nodeid(&self, path: &Path) -> u64 {
        let probe = Hostile::on(self, GETATTR);
        fs::metadata(path).unwrap();
        probe.seen().last.nodeid
    }

    pub fn file(&self, name: &str) -> PathBuf {
        let path = self.at.join(name);
        fs::write(&path, name).unwrap();
        path
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        drop((self.device.take(), self.fd.take()));
        let _may_be_gone = umount2(&self.at, MntFlags::MNT_DETACH);
        self.join();
    }
}

/// The program set, loaded for one connection.
pub struct Hostile {
    skeleton: HostileSkel<'static>,
    pub link: Option<Link>,
}

impl Hostile {
    /// Loaded, not attached. Errors are libbpf's.
    pub fn load(conn: u64, opcodes: u64) -> libbpf_rs::Result<Self> {
        // One a test process: the object has to outlive its skeleton.
        let storage: &'static mut MaybeUninit<OpenObject> = Box::leak(Box::new(MaybeUninit::uninit()));
        let mut open = HostileSkelBuilder::default().open(storage)?;
        for ops in [
            open.struct_ops.hostile_mut() as *mut _,
            open.struct_ops.second_mut() as *mut _,
        ] {
            // SAFETY: both live in the shadow values of `open`, and are different.
            let ops: &mut skeleton::types::extfuse_ops = unsafe { &mut *ops };
            ops.conn = conn;
            ops.opcodes = opcodes;
            ops.replies = opcodes;
        }
        Ok(Self {
            skeleton: open.load()?,
            link: None,
        })
    }

    pub fn attach(&mut self) -> libbpf_rs::Result<()> {
        self.link = Some(self.skeleton.maps.hostile.attach_struct_ops()?);
        Ok(())
    }

    /// Loaded and attached, and asked about `opcode` only.
    pub fn on(mounted: &Mounted, opcode: u32) -> Self {
        let mut hostile = Self::load(mounted.setup().conn, 1 << opcode).unwrap();
        hostile.attach().unwrap();
        hostile.tell(|seen| seen.target = opcode);
        hostile
    }

    /// Asked about names in the mount's root, which may be walked through.
    pub fn on_names(mounted: &Mounted) -> Self {
        let mut hostile = Self::load(mounted.setup().conn, 1 << LOOKUP | 1 << GETATTR).unwrap();
        hostile.tell(|seen| {
            seen.target = LOOKUP;
            seen.way_node = 1;
            seen.way.copy_from_slice(&attr_out(&mounted.source));
        });
        hostile.attach().unwrap();
        hostile
    }

    pub fn replace_by_second(&mut self) -> io::Result<()> {
        let link = self.link.as_mut().unwrap();
        update_struct_ops(link, &self.skeleton.maps.second)
    }

    pub fn tell(&mut self, how: impl FnOnce(&mut Seen)) {
        how(self.skeleton.maps.bss_data.as_deref_mut().unwrap());
    }

    pub fn verdict(&mut self, verdict: i32) {
        self.skeleton.maps.data_data.as_deref_mut().unwrap().verdict = verdict;
    }

    /// Bytes for out argument 0 of every answer.
    pub fn answer(&mut self, bytes: &[u8]) {
        self.tell(|seen| {
            seen.answer[..bytes.len()].copy_from_slice(bytes);
            seen.write_size = u32::try_from(bytes.len()).unwrap();
        });
    }

    /// Answers a LOOKUP of this name only.
    pub fn only_name(&mut self, name: &str) {
        self.tell(|seen| {
            seen.name[..name.len()].copy_from_slice(name.as_bytes());
            seen.name_len = u32::try_from(name.len()).unwrap();
            seen.answer_by_name = 1;
        });
    }

    pub fn seen(&self) -> &Seen {
        self.skeleton.maps.bss_data.as_deref().unwrap()
    }
}

/// `struct fuse_attr_out` of what `path` is behind the mount, to be spoilt by a test.
pub fn attr_out(path: &Path) -> Vec<u8> {
    let mut out = vec![0; 16];
    out.extend(attr(path));
    out
}

/// `struct fuse_entry_out`.
pub fn entry_out(nodeid: u64, generation: u64, path: &Path) -> Vec<u8> {
    let mut out = Vec::new();
    for word in [nodeid, generation, 0, 0, 0] {
        out.extend(u64::to_ne_bytes(word));
    }
    out.extend(attr(path));
    out
}

/// Offsets in `struct fuse_attr`.
pub mod offset {
    pub const SIZE: usize = 8;
    pub const MODE: usize = 60;
    pub const UID: usize = 68;
}

fn attr(path: &Path) -> Vec<u8> {
    use std::os::unix::fs::MetadataExt;
    let of = fs::symlink_metadata(path).unwrap();
    let mut out = Vec::new();
    for word in [
        of.ino(),
        of.size(),
        of.blocks(),
        of.atime() as u64,
        of.mtime() as u64,
        of.ctime() as u64,
    ] {
        out.extend(word.to_ne_bytes());
    }
    let nsec = [of.atime_nsec(), of.mtime_nsec(), of.ctime_nsec()].map(|nsec| nsec as u32);
    for word in nsec
        .into_iter()
        .chain([of.mode(), of.nlink() as u32, of.uid(), of.gid(), 0, 4096, 0])
    {
        out.extend(word.to_ne_bytes());
    }
    out
}
