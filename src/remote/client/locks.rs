// SPDX-License-Identifier: MIT OR Apache-2.0
//! Locks of those who use the mount, which the server has.
//!
//! **Waiting** is done here, by asking again and again, because nobody may keep one of the mount's threads: the one who
//! lets go needs it. Who waits is put into a queue, from which a few threads take those whose time has come. While
//! there are few, the server is told to answer when the lock is free; else it is asked now and then. The
//! same threads look whether a signal wants the caller back. They either have the lock for him or not when they
//! answer, so none is left to nobody.
//!
//! **Closing.** Locks of a process go with FLUSH, those of an open file with RELEASE. Who may have any is noted before
//! it is asked for; so who has none is not asked about. What was noted is let go some day, however often the
//! connection breaks: until then its owner's number gets no new one.
//!
//! **Data.** Who gets a lock reads what others have written before they let go: what the kernel keeps of the file is
//! given up first. The kernel may wait for a READ while it does so: never on a thread of the mount's.

mod caller;
mod taken;

use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use fuser::{Errno as FuseErrno, FileHandle, INodeNo, Notifier, ReplyEmpty};
use nix::errno::Errno;
use parking_lot::{Condvar, Mutex};
use tracing::warn;

use self::caller::{Waiter, is_in_flock};
pub(super) use self::taken::Wish;
use self::taken::{Owner, Table, Taken, Way};
use super::calls::Shared;
use super::questions::{Result, ask_again, file};
use super::room::with_room;
use crate::Kernel;
use crate::fs::Upcalls;
use crate::fs::upcalls::Opcode;
use crate::remote::wire::Request;
use crate::remote::wire::message::{Lock, LockKind, SetLock};
use crate::sys::lock::LAST;

/// Threads for those who wait.
const THREADS: usize = 4;

/// How soon the server is asked again: at first, and after many refusals. So often signals are looked at, too.
const PAUSE: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(100));

/// How soon what could not be let go is tried again, after many failures.
const LATER: Duration = Duration::from_secs(1);

/// What is to be done when its time has come.
#[derive(Debug)]
enum Task {
    /// Somebody waits.
    Wait {
        wish: Wish,
        way: Way,
        waiter: Waiter,
        reply: ReplyEmpty,
    },
    /// What this owner may have is let go, though the server could not be told so at once.
    LetGo(Owner),
}

#[derive(Debug)]
struct Job {
    task: Task,
    due: Instant,
    pause: Duration,
}

#[derive(Debug, Default)]
struct Queue {
    jobs: Vec<Job>,
    idle: usize,
    threads: Vec<JoinHandle<()>>,
    over: bool,
}

/// Somebody has a lock, and may know when the kernel has given up what it keeps of the file.
type Grant = (INodeNo, ReplyEmpty);

#[derive(Debug)]
struct Desk {
    asks: Arc<Shared>,
    upcalls: Arc<Upcalls>,
    kernel: Kernel,
    pages: OnceLock<Notifier>,
    /// Not locked while anybody is asked, nor while `queue` is.
    table: Mutex<Table>,
    let_go: Condvar,
    queue: Mutex<Queue>,
    changed: Condvar,
}

/// Gives the file system of a mount what it needs to have the kernel give up pages.
#[derive(Clone, Debug)]
pub struct Pages(Arc<Desk>);

impl Pages {
    /// Through this.
    pub fn are_given_up_by(&self, notifier: Notifier) {
        // There is one device.
        let _ = self.0.pages.set(notifier);
    }
}

/// Those of a mount.
#[derive(Debug)]
pub(super) struct Locks {
    desk: Arc<Desk>,
    grants: Option<Sender<Grant>>,
    granting: Option<JoinHandle<()>>,
}

/// Whether the server may not have heard, or its answer was lost.
fn is_unheard(errno: Errno) -> bool {
    matches!(errno, Errno::EIO | Errno::ETIMEDOUT)
}

impl Locks {
    /// None yet.
    pub fn new(asks: Arc<Shared>, upcalls: Arc<Upcalls>, kernel: Kernel) -> Self {
        let desk = Arc::new(Desk {
            asks,
            upcalls,
            kernel,
            pages: OnceLock::new(),
            table: Mutex::default(),
            let_go: Condvar::new(),
            queue: Mutex::default(),
            changed: Condvar::new(),
        });
        let (grants, granted) = channel::<Grant>();
        let granter = Arc::clone(&desk);
        let thread = thread::Builder::new().name("remote-grants".into());
        let granting = thread.spawn(move || {
            for (ino, reply) in granted {
                granter.grant(ino, reply);
            }
        });
        let granting = granting.inspect_err(|error| warn!("locks are not granted: {error}"));
        Self {
            desk,
            grants: Some(grants),
            granting: granting.ok(),
        }
    }

    pub fn pages(&self) -> Pages {
        Pages(Arc::clone(&self.desk))
    }

    /// This file is open for writing.
    pub fn writes(&self, handle: u64) {
        self.desk.table.lock().written.insert(handle);
    }

    /// Locks or unlocks, now or, if `waits`, when it can be.
    pub fn set(&self, wish: Wish, waits: bool, reply: ReplyEmpty) {
        let desk = &self.desk;
        let opcode = opcode(waits);
        desk.upcalls.count(opcode);
        let way = match desk.way(&wish) {
            Ok(Some(way)) => way,
            // What nobody has the server need not take away.
            Ok(None) => return reply.ok(),
            Err(errno) => return desk.refuse(opcode, errno, reply),
        };
        match desk.attempt(&wish, way, false) {
            Ok(()) if wish.unlocks() => {
                reply.ok();
                desk.hurry(wish.ino);
            }
            Ok(()) => {
                desk.note(&wish, way);
                let granted = self.grants.as_ref().map(|grants| grants.send((wish.ino, reply)));
                // The reply of what was not sent says EIO.
                drop(granted);
            }
            Err(Errno::EAGAIN) if waits => {
                let waiter = Waiter::new(wish.thread);
                let task = Task::Wait {
                    wish,
                    way,
                    waiter,
                    reply,
                };
                desk.add(task);
            }
            Err(errno) => desk.refuse(opcode, errno, reply),
        }
    }

    /// A descriptor of this file was closed: what the owner has goes. Asks if there is reason to.
    pub fn flush(
        &self,
        ino: INodeNo,
        fh: FileHandle,
        owner: u64,
        ask: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let desk = &self.desk;
        let owner = (ino.0, owner);
        let has = {
            let mut table = desk.table.lock();
            let has = table.taken.remove(&owner).is_some();
            if !has && !table.written.contains(&fh.0) {
                return Ok(());
            }
            has
        };
        let asked = ask();
        if has {
            match asked {
                Err(errno) if is_unheard(errno) => desk.leave(owner),
                _ => desk.hurry(ino),
            }
        }
        asked
    }

    /// The last descriptor of this file was closed: nobody has a lock any more that was taken through it.
    pub fn release(&self, ino: INodeNo, fh: FileHandle, ask: impl FnOnce() -> Result<()>) -> Result<()> {
        let desk = &self.desk;
        let gone: Vec<Owner> = {
            let mut table = desk.table.lock();
            table.written.remove(&fh.0);
            let there = table.taken.range((ino.0, 0)..=(ino.0, u64::MAX));
            let gone = there.filter(|(_, taken)| taken.handles.contains(&fh.0));
            let gone: Vec<Owner> = gone.map(|(owner, _)| *owner).collect();
            for owner in &gone {
                table.taken.remove(owner);
            }
            gone
        };
        let asked = ask();
        match asked {
            _ if gone.is_empty() => {}
            Err(errno) if is_unheard(errno) => gone.into_iter().for_each(|owner| desk.leave(owner)),
            _ => desk.hurry(ino),
        }
        asked
    }
}

impl Drop for Locks {
    fn drop(&mut self) {
        // Whoever still waits gets EIO.
        let (jobs, threads) = {
            let mut queue = self.desk.queue.lock();
            queue.over = true;
            (
                std::mem::take(&mut queue.jobs),
                std::mem::take(&mut queue.threads),
            )
        };
        self.desk.changed.notify_all();
        for job in jobs {
            if let Task::Wait { reply, .. } = job.task {
                reply.error(FuseErrno::EIO);
            }
        }
        self.grants = None;
        for thread in threads.into_iter().chain(self.granting.take()) {
            if thread.join().is_err() {
                warn!("a thread for locks panicked");
            }
        }
    }
}

fn opcode(waits: bool) -> Opcode {
    match waits {
        true => Opcode::Setlkw,
        false => Opcode::Setlk,
    }
}

impl Desk {
    fn refuse(&self, opcode: Opcode, errno: Errno, reply: ReplyEmpty) {
        self.upcalls.count_error(opcode);
        reply.error(FuseErrno::from_i32(errno as i32));
    }

    fn is_written(&self, fh: FileHandle) -> bool {
        self.table.lock().written.contains(&fh.0)
    }

    /// He has it.
    fn grant(&self, ino: INodeNo, reply: ReplyEmpty) {
        if let Some(pages) = self.pages.get() {
            // A file that the kernel does not know has no pages.
            let _ = pages.inval_inode(ino, 0, 0);
        }
        reply.ok();
    }

    /// How the server is to be asked for this. That it will be is noted; none if there is nothing to ask for.
    fn way(&self, wish: &Wish) -> Result<Option<Way>> {
        let flock = match wish.may_be_flock() {
            false => Some(false),
            // The kernel has refused to fcntl(2) what needs a file that is open for writing.
            true if wish.lock.kind == LockKind::Write && !self.is_written(wish.fh) => Some(true),
            true => is_in_flock(wish.thread),
        };
        let owner = wish.owner();
        let mut table = self.table.lock();
        let until = Instant::now() + self.asks.timeout;
        while table.leaving.contains(&owner) {
            if self.let_go.wait_until(&mut table, until).timed_out() {
                return Err(Errno::ETIMEDOUT);
            }
        }
        if wish.unlocks() {
            // The rest of a file that is locked both ways stays so.
            let whole = wish.may_be_flock();
            let way = |taken: &Taken| match whole {
                true => taken.way(flock, true),
                false => Way::Fcntl,
            };
            return Ok(table.taken.get(&owner).map(way));
        }
        let taken = table.taken.entry(owner).or_default();
        let way = match wish.may_be_flock() {
            true => taken.way(flock, false),
            false => Way::Fcntl,
        };
        taken.note(wish, way);
        Ok(Some(way))
    }

    /// The server has locked. Once more: another thread may have closed the file meanwhile, then the kernel is about to
    /// take the lock back.
    fn note(&self, wish: &Wish, way: Way) {
        let mut table = self.table.lock();
        table.taken.entry(wish.owner()).or_default().note(wish, way);
    }

    fn ask(&self, wish: &Wish, flock: bool, wait: bool) -> Result<()> {
        let request = Request::SetLock(SetLock {
            owner: wish.owner,
            lock: wish.lock,
            flock,
            wait,
        });
        let about = file(wish.ino, wish.fh);
        let asked = with_room(&self.kernel, || {
            let (answer, _) = self.asks.call(&about, &request, self.asks.timeout);
            answer.map(drop).map_err(ask_again)
        });
        // As fcntl(2) and flock(2) call it.
        asked.map_err(|errno| match errno {
            Errno::ENFILE => Errno::ENOLCK,
            errno => errno,
        })
    }

    fn attempt(&self, wish: &Wish, way: Way, wait: bool) -> Result<()> {
        match way {
            Way::Fcntl => self.ask(wish, false, wait),
            Way::Flock => self.ask(wish, true, wait),
            Way::Both if wish.unlocks() => {
                let flock = self.ask(wish, true, false);
                self.ask(wish, false, false).and(flock)
            }
            Way::Both => {
                self.ask(wish, true, wait)?;
                self.ask(wish, false, false).inspect_err(|_| {
                    let mut back = *wish;
                    back.lock.kind = LockKind::Unlock;
                    // If that is not heard it goes with the file.
                    let _ = self.ask(&back, true, false);
                })
            }
        }
    }

    /// This owner has closed his file, and the server may not know.
    fn leave(self: &Arc<Self>, owner: Owner) {
        if self.table.lock().leaving.insert(owner) {
            self.add(Task::LetGo(owner));
        }
    }

    /// Lets go what an owner may have; whether that is all.
    fn lets_go(&self, (ino, owner): Owner) -> bool {
        let wish = Wish {
            ino: INodeNo(ino),
            // Nobody needs an open file to give a lock back.
            fh: FileHandle(0),
            owner,
            lock: Lock {
                kind: LockKind::Unlock,
                start: 0,
                end: LAST,
                pid: 0,
            },
            thread: 0,
        };
        // A session that is no more has no locks.
        self.attempt(&wish, Way::Both, false)
            .map_or_else(|errno| !is_unheard(errno), |()| true)
    }

    /// Somebody on this mount has let a lock on this file go: who waits for it may get it.
    fn hurry(&self, ino: INodeNo) {
        let mut queue = self.queue.lock();
        let now = Instant::now();
        for job in &mut queue.jobs {
            if matches!(&job.task, Task::Wait { wish, .. } if wish.ino == ino) {
                (job.due, job.pause) = (now, PAUSE.0);
            }
        }
        drop(queue);
        self.changed.notify_all();
    }

    fn add(self: &Arc<Self>, task: Task) {
        let mut queue = self.queue.lock();
        if queue.over {
            return;
        }
        queue.jobs.push(Job {
            task,
            due: Instant::now(),
            pause: PAUSE.0,
        });
        if queue.idle == 0 && queue.threads.len() < THREADS {
            let desk = Arc::clone(self);
            let thread = thread::Builder::new().name("remote-locks".into());
            match thread.spawn(move || desk.work()) {
                Ok(thread) => queue.threads.push(thread),
                Err(error) => warn!("a thread less for those who wait for locks: {error}"),
            }
        }
        self.changed.notify_one();
    }

    /// The next whose time has come, and whether it is the only one that no thread has taken on. None when it is over.
    fn next(&self) -> Option<(Job, bool)> {
        let mut queue = self.queue.lock();
        loop {
            if queue.over {
                return None;
            }
            let first = (0..queue.jobs.len()).min_by_key(|at| queue.jobs[*at].due);
            match first {
                Some(at) if queue.jobs[at].due <= Instant::now() => {
                    let job = queue.jobs.swap_remove(at);
                    return Some((job, queue.jobs.is_empty()));
                }
                first => {
                    queue.idle += 1;
                    match first.map(|at| queue.jobs[at].due) {
                        Some(due) => {
                            self.changed.wait_until(&mut queue, due);
                        }
                        None => self.changed.wait(&mut queue),
                    }
                    queue.idle -= 1;
                }
            }
        }
    }

    fn work(&self) {
        while let Some((job, alone)) = self.next() {
            let began = Instant::now();
            let pause = (job.pause * 2).min(match job.task {
                Task::Wait { .. } => PAUSE.1,
                Task::LetGo(_) => LATER,
            });
            let Some(task) = self.go_on(job.task, alone) else {
                continue;
            };
            // A server that has waited for us may be asked again at once.
            let due = Instant::now().max(began + job.pause);
            let mut queue = self.queue.lock();
            if queue.over {
                if let Task::Wait { reply, .. } = task {
                    reply.error(FuseErrno::EIO);
                }
                return;
            }
            queue.jobs.push(Job { task, due, pause });
            drop(queue);
            self.changed.notify_one();
        }
    }

    /// Tries once more; gives it back if that was not all.
    fn go_on(&self, task: Task, alone: bool) -> Option<Task> {
        match task {
            Task::LetGo(owner) => {
                if !self.lets_go(owner) {
                    return Some(task);
                }
                self.table.lock().leaving.remove(&owner);
                self.let_go.notify_all();
                None
            }
            Task::Wait {
                wish,
                way,
                mut waiter,
                reply,
            } => {
                if waiter.is_interrupted() {
                    self.refuse(Opcode::Setlkw, Errno::EINTR, reply);
                    return None;
                }
                match self.attempt(&wish, way, alone) {
                    Ok(()) => {
                        self.note(&wish, way);
                        self.grant(wish.ino, reply);
                    }
                    Err(Errno::EAGAIN) => {
                        return Some(Task::Wait {
                            wish,
                            way,
                            waiter,
                            reply,
                        });
                    }
                    Err(errno) => self.refuse(Opcode::Setlkw, errno, reply),
                }
                None
            }
        }
    }
}
