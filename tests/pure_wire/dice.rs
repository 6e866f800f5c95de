// SPDX-License-Identifier: MIT OR Apache-2.0
//! Messages with anything in them, out of one number.

use extfuse::remote::wire::message::{
    Attr, Caller, CopyFileRange, Create, Created, Data, DirEntry, Empty, Entry, Fallocate, FileKind, Flush,
    Forget, Forgotten, Getxattr, Hello, HelloReply, Invalidate, Invalidation, Link, Listing, Listxattr, Lock,
    LockKind, LockRange, Lookup, Lseek, Mkdir, Mknod, Open, Opened, Proof, Read, Readdir, Release,
    Removexattr, Rename, Renewed, Rmdir, SessionId, SetAttr, SetLock, SetTime, Setxattr, Statfs, Symlink,
    Timestamp, Unlink, Versions, Wanted,
};
use extfuse::remote::wire::{
    Export, ListedName, MAX_PAYLOAD, Name, Reply, Request, Sizes, Target, XattrName, XattrValue,
};

/// Numbers that look random (splitmix64), the ends of their range more often than chance would have it.
pub struct Dice(pub u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    fn long(&mut self) -> u64 {
        match self.below(4) {
            0 => self.next() % 300,
            1 => u64::MAX - self.next() % 2,
            _ => self.next(),
        }
    }

    fn int(&mut self) -> u32 {
        self.long() as u32
    }

    fn flag(&mut self) -> bool {
        self.below(2) == 0
    }

    fn maybe<T>(&mut self, some: impl FnOnce(&mut Self) -> T) -> Option<T> {
        self.flag().then(|| some(self))
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        std::array::from_fn(|_| self.next() as u8)
    }

    fn many<T>(&mut self, mut one: impl FnMut(&mut Self) -> T) -> Vec<T> {
        (0..self.below(9)).map(|_| one(self)).collect()
    }

    /// Neither `/` nor NUL.
    fn bytes(&mut self, least: usize, most: usize) -> Vec<u8> {
        let length = match self.below(4) {
            0 => least,
            1 => most,
            _ => least + self.below(most.min(300) - least),
        };
        let byte = |dice: &mut Self| match dice.next() as u8 {
            0 | b'/' => b'x',
            byte => byte,
        };
        (0..length).map(|_| byte(self)).collect()
    }

    fn name(&mut self) -> Name {
        Name::new(self.bytes(1, 255)).unwrap_or_else(|_| Name::new("...").unwrap())
    }

    fn listed(&mut self) -> ListedName {
        match self.below(4) {
            0 => ListedName::new(".."),
            _ => ListedName::new(self.bytes(1, 255)),
        }
        .unwrap()
    }

    fn xattr(&mut self) -> XattrName {
        XattrName::new(self.bytes(1, 255)).unwrap()
    }

    fn caller(&mut self) -> Caller {
        Caller {
            uid: self.int(),
            gid: self.int(),
        }
    }

    fn time(&mut self) -> Timestamp {
        Timestamp::new(self.long() as i64, self.int() % 1_000_000_000).unwrap()
    }

    fn set_time(&mut self) -> SetTime {
        match self.flag() {
            true => SetTime::Now,
            false => SetTime::At(self.time()),
        }
    }

    fn wanted(&mut self) -> Wanted {
        match self.below(3) {
            0 => Wanted::New,
            1 => Wanted::Resumed(SessionId(self.array())),
            _ => Wanted::Joined(SessionId(self.array())),
        }
    }

    fn kind(&mut self) -> FileKind {
        [
            FileKind::NamedPipe,
            FileKind::CharDevice,
            FileKind::Directory,
            FileKind::BlockDevice,
            FileKind::RegularFile,
            FileKind::Symlink,
            FileKind::Socket,
        ][self.below(7)]
    }

    fn attr(&mut self) -> Attr {
        Attr {
            ino: self.long(),
            size: self.long(),
            blocks: self.long(),
            atime: self.time(),
            mtime: self.time(),
            ctime: self.time(),
            kind: self.kind(),
            perm: self.int() & 0o7777,
            nlink: self.int(),
            uid: self.int(),
            gid: self.int(),
            rdev: self.int(),
            blksize: self.int(),
        }
    }

    fn entry(&mut self) -> Entry {
        Entry {
            node: self.long(),
            attr: self.attr(),
        }
    }

    fn opened(&mut self) -> Opened {
        Opened {
            handle: self.long(),
            attr: self.maybe(Self::attr),
        }
    }

    fn lock(&mut self) -> Lock {
        Lock {
            kind: [LockKind::Read, LockKind::Write, LockKind::Unlock][self.below(3)],
            start: self.long(),
            end: self.long(),
            pid: self.int(),
        }
    }

    fn invalidation(&mut self) -> Invalidation {
        let (node, offset, length) = (self.long(), self.long(), self.long());
        match self.below(5) {
            0 => Invalidation::Attributes { node },
            1 => Invalidation::Data { node, offset, length },
            2 => Invalidation::Entry {
                parent: node,
                name: self.listed(),
            },
            3 => Invalidation::Listing { node },
            _ => Invalidation::Everything,
        }
    }

    fn sizes(&mut self) -> Sizes {
        let mut size = || 102 + self.below(4096 - 101) as u16;
        Sizes::new(size(), size()).unwrap()
    }

    /// One of every kind.
    pub fn requests<'a>(&mut self, data: &'a [u8]) -> Vec<Request<'a>> {
        vec![
            Request::Hello(Hello {
                versions: Versions {
                    min: self.int() as u16,
                    max: self.int() as u16,
                },
                sizes: self.sizes(),
                nonce: self.array(),
                export: Export::new(self.bytes(0, 4095)).unwrap(),
                session: self.wanted(),
                keeps: self.flag(),
            }),
            Request::Authenticate(Proof(self.array())),
            Request::Ping(Empty),
            Request::Goodbye(Empty),
            Request::Renew(Empty),
            Request::Invalidate(Invalidate {
                what: self.many(Self::invalidation),
            }),
            Request::Invalidated(Empty),
            Request::Lookup(Lookup { name: self.name() }),
            Request::Forget(Forget {
                nodes: self.many(|dice| Forgotten {
                    node: dice.long(),
                    nlookup: dice.long(),
                }),
            }),
            Request::Getattr(Empty),
            Request::Setattr(SetAttr {
                mode: self.maybe(Self::int),
                uid: self.maybe(Self::int),
                gid: self.maybe(Self::int),
                size: self.maybe(Self::long),
                atime: self.maybe(Self::set_time),
                mtime: self.maybe(Self::set_time),
                handle: self.maybe(Self::long),
            }),
            Request::Readlink(Empty),
            Request::Mknod(Mknod {
                name: self.name(),
                mode: self.int(),
                umask: self.int(),
                rdev: self.int(),
                caller: self.caller(),
            }),
            Request::Mkdir(Mkdir {
                name: self.name(),
                mode: self.int(),
                umask: self.int(),
                caller: self.caller(),
            }),
            Request::Symlink(Symlink {
                name: self.name(),
                target: Target::new(self.bytes(1, 4095)).unwrap(),
                caller: self.caller(),
            }),
            Request::Link(Link {
                parent: self.long(),
                name: self.name(),
            }),
            Request::Unlink(Unlink { name: self.name() }),
            Request::Rmdir(Rmdir { name: self.name() }),
            Request::Rename(Rename {
                name: self.name(),
                new_parent: self.long(),
                new_name: self.name(),
                flags: self.int(),
                caller: self.caller(),
            }),
            Request::Open(Open {
                flags: self.int() as i32,
            }),
            Request::Create(Create {
                name: self.name(),
                mode: self.int(),
                umask: self.int(),
                flags: self.int() as i32,
                caller: self.caller(),
            }),
            Request::Read(Read {
                size: self.int() % (MAX_PAYLOAD + 1),
            }),
            Request::Write(Data(data)),
            Request::Flush(Flush { owner: self.long() }),
            Request::Release(Release {
                owner: self.maybe(Self::long),
            }),
            Request::Fsync(Empty),
            Request::Fallocate(Fallocate {
                length: self.long(),
                mode: self.int() as i32,
            }),
            Request::Lseek(Lseek {
                whence: self.int() as i32,
            }),
            Request::CopyFileRange(CopyFileRange {
                to_node: self.long(),
                to_handle: self.long(),
                to_offset: self.long(),
                length: self.long(),
                flags: self.long(),
            }),
            Request::Opendir(Empty),
            Request::Readdir(Readdir {
                size: self.int() % (MAX_PAYLOAD + 1),
            }),
            Request::Releasedir(Empty),
            Request::Fsyncdir(Empty),
            Request::Statfs(Empty),
            Request::Getxattr(Getxattr {
                name: self.xattr(),
                room: self.int(),
            }),
            Request::Setxattr(Setxattr {
                name: self.xattr(),
                value: XattrValue::new(self.bytes(0, 64 << 10)).unwrap(),
                flags: self.int() as i32,
                caller: self.caller(),
            }),
            Request::Listxattr(Listxattr {
                room: self.int(),
                caller: self.caller(),
            }),
            Request::Removexattr(Removexattr { name: self.xattr() }),
            Request::GetLock(LockRange {
                owner: self.long(),
                lock: self.lock(),
            }),
            Request::SetLock(SetLock {
                owner: self.long(),
                lock: self.lock(),
                flock: self.flag(),
                wait: self.flag(),
            }),
        ]
    }

    /// One of every kind that has one.
    pub fn replies<'a>(&mut self, data: &'a [u8]) -> Vec<Reply<'a>> {
        let short = &data[..data.len().min(4095)];
        vec![
            Reply::Hello(HelloReply {
                version: self.int() as u16,
                sizes: self.sizes(),
                nonce: self.array(),
                token: self.flag(),
                session: SessionId(self.array()),
                lease_ms: self.int(),
                read_only: self.flag(),
                requests: self.int() as u16,
                keep_ms: self.flag().then(|| self.int()),
                reads_nodes: self.flag(),
            }),
            Reply::Authenticate(Proof(self.array())),
            Reply::Ping(Empty),
            Reply::Goodbye(Empty),
            Reply::Renew(Renewed { lease_ms: self.int() }),
            Reply::Lookup(self.entry()),
            Reply::Getattr(self.attr()),
            Reply::Setattr(self.attr()),
            Reply::Readlink(Data(short)),
            Reply::Mknod(self.entry()),
            Reply::Mkdir(self.entry()),
            Reply::Symlink(self.entry()),
            Reply::Link(self.entry()),
            Reply::Unlink(Empty),
            Reply::Rmdir(Empty),
            Reply::Rename(Empty),
            Reply::Open(self.opened()),
            Reply::Create(Created {
                entry: self.entry(),
                handle: self.long(),
            }),
            Reply::Read(Data(data)),
            Reply::Write(Empty),
            Reply::Flush(Empty),
            Reply::Release(Empty),
            Reply::Fsync(Empty),
            Reply::Fallocate(Empty),
            Reply::Lseek(Empty),
            Reply::CopyFileRange(Empty),
            Reply::Opendir(self.opened()),
            Reply::Readdir(Listing {
                entries: self.many(|dice| DirEntry {
                    ino: dice.long(),
                    offset: dice.long(),
                    kind: dice.kind(),
                    name: dice.listed(),
                }),
            }),
            Reply::Releasedir(Empty),
            Reply::Fsyncdir(Empty),
            Reply::Statfs(Statfs {
                blocks: self.long(),
                bfree: self.long(),
                bavail: self.long(),
                files: self.long(),
                ffree: self.long(),
                bsize: self.int(),
                namelen: self.int(),
                frsize: self.int(),
            }),
            Reply::Getxattr(Data(short)),
            Reply::Setxattr(Empty),
            Reply::Listxattr(Data(short)),
            Reply::Removexattr(Empty),
            Reply::GetLock(self.lock()),
            Reply::SetLock(Empty),
        ]
    }
}
