// SPDX-License-Identifier: MIT OR Apache-2.0
//! A directory that is served on this machine, and mounted on it again: by extfuse, by sshd and sshfs, and by
//! the kernel's nfsd and NFS.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::mount::umount;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::Variant;
use crate::mounts::{self, Counters, EXTFUSE, Place, file_system_at};

/// The cheapest that OpenSSH has, on a processor with instructions for AES.
const CIPHER: &str = "aes128-gcm@openssh.com";

/// What asks the server each time, as an `extfuse mount` seems to do.
const SSHFS: &str = "dir_cache=no,entry_timeout=0,attr_timeout=0,negative_timeout=0";

/// As many as `extfuse serve` has for a client's requests at least.
const NFSD_THREADS: &str = "2";
const NFSD_PORT: &str = "2049";

/// Where scripts/setup has unpacked the programs of Debian that are not installed.
fn peers() -> Result<PathBuf> {
    let folder = std::env::var_os("EXTFUSE_PEERS").context("no $EXTFUSE_PEERS: run it by scripts/bench")?;
    Ok(folder.into())
}

/// A program of those.
fn peer(program: &str) -> Result<Command> {
    let peers = peers()?;
    let mut command = Command::new(peers.join(program));
    command
        .env("LD_LIBRARY_PATH", peers.join("usr/lib/x86_64-linux-gnu"))
        .current_dir("/")
        .stdin(Stdio::null());
    Ok(command)
}

fn succeed(command: &mut Command) -> Result<()> {
    let shown = format!("{command:?}");
    let output = command
        .current_dir("/")
        .stdin(Stdio::null())
        // Of those that go on in the background nobody sees the end.
        .stdout(Stdio::null())
        .stderr(Stdio::inherit())
        .status()
        .with_context(|| shown.clone())?;
    ensure!(output.success(), "{shown}: {output}");
    Ok(())
}

/// Who serves.
#[derive(Debug)]
enum Server {
    Extfuse {
        child: Child,
        address: String,
        token: PathBuf,
    },
    Ssh {
        child: Child,
        port: u16,
        key: PathBuf,
    },
    Nfs {
        mountd: Child,
        export: String,
    },
}

/// A directory with its server, if it has one.
#[derive(Debug)]
pub struct Far {
    variant: Variant,
    tree: PathBuf,
    mountpoint: PathBuf,
    smoke: bool,
    server: Option<Server>,
}

/// It is seen at `path`.
pub struct Mount {
    pub path: PathBuf,
    /// extfuse's, which counts.
    place: Option<Place>,
    kind: Option<&'static str>,
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path that is not UTF-8")
}

impl Far {
    /// Serves `tree`, in the way of `variant`; what it needs, and where it is mounted, is in `base`.
    pub fn serve(variant: Variant, tree: &Path, base: &Path, smoke: bool) -> Result<Self> {
        fs::create_dir_all(base)?;
        let mountpoint = base.join(variant.name());
        let server = match variant {
            Variant::Native | Variant::Transport => None,
            Variant::Extfuse | Variant::Spool => Some(Server::extfuse(tree, base)?),
            Variant::Sshfs => Some(Server::ssh(base)?),
            Variant::Nfs => Some(Server::nfs(tree)?),
        };
        if server.is_some() {
            fs::create_dir_all(&mountpoint)?;
        }
        Ok(Self {
            variant,
            tree: tree.to_path_buf(),
            mountpoint,
            smoke,
            server,
        })
    }

    /// Mounts it as if for the first time.
    pub fn mount(&self) -> Result<Mount> {
        let path = self.mountpoint.clone();
        let at = text(&path)?;
        let mut place = None;
        let kind = match &self.server {
            None => {
                return Ok(Mount {
                    path: self.tree.clone(),
                    place: None,
                    kind: None,
                });
            }
            Some(Server::Extfuse { address, token, .. }) => {
                let source = format!("extfuse://{address}");
                let module = if self.smoke { "--stock" } else { "--require-module" };
                let arguments = ["mount", module, "--token-file", text(token)?, &source, at];
                let more: &[&str] = match self.variant {
                    Variant::Spool => &["--spool", "memory", "--writeback"],
                    _ => &[],
                };
                succeed(Command::new(EXTFUSE).args(arguments).args(more))?;
                let variant = match self.smoke {
                    true => mounts::Variant::Stock0,
                    false => mounts::Variant::Handlers,
                };
                place = Some(Place::mounted(variant, path.clone())?);
                None
            }
            Some(Server::Ssh { port, key, .. }) => {
                let options = format!(
                    "port={port},IdentityFile={},StrictHostKeyChecking=no,UserKnownHostsFile=/dev/null,\
                     Ciphers={CIPHER},Compression=no,LogLevel=ERROR,{SSHFS}",
                    text(key)?
                );
                let source = format!("root@127.0.0.1:{}", text(&self.tree)?);
                succeed(peer("usr/bin/sshfs")?.args([&source, at, "-o", &options]))?;
                Some("fuse.sshfs")
            }
            Some(Server::Nfs { .. }) => {
                let options = "vers=4.2,noac,proto=tcp,addr=127.0.0.1,clientaddr=127.0.0.1";
                let arguments = ["-i", "-t", "nfs4", "-o", options, "127.0.0.1:/", at];
                succeed(Command::new("mount").args(arguments))?;
                Some("nfs4")
            }
        };
        let mount = Mount { path, place, kind };
        mount.check()?;
        Ok(mount)
    }

    /// Where `extfuse serve` listens, and the file of its token.
    pub fn reached(&self) -> Option<(&str, &Path)> {
        match &self.server {
            Some(Server::Extfuse { address, token, .. }) => Some((address, token)),
            _ => None,
        }
    }

    /// The processes that serve a mount that is there.
    pub fn processes(&self) -> Result<Vec<Pid>> {
        let found = match &self.server {
            None => return Ok(Vec::new()),
            Some(Server::Extfuse { child, .. } | Server::Ssh { child, .. }) => descendants(pid(child))?,
            Some(Server::Nfs { .. }) => named("nfsd")?,
        };
        ensure!(!found.is_empty(), "nobody serves {}", self.variant.name());
        Ok(found)
    }

    /// After the last mount is gone.
    pub fn stop(mut self) -> Result<()> {
        match self.server.take() {
            None => {}
            Some(Server::Extfuse { mut child, .. } | Server::Ssh { mut child, .. }) => {
                kill(pid(&child), Signal::SIGTERM)?;
                child.wait()?;
            }
            Some(Server::Nfs { mut mountd, export }) => {
                succeed(peer("usr/sbin/rpc.nfsd")?.arg("0"))?;
                succeed(peer("usr/sbin/exportfs")?.args(["-u", &export]))?;
                kill(pid(&mountd), Signal::SIGTERM)?;
                mountd.wait()?;
            }
        }
        Ok(())
    }
}

impl Drop for Far {
    fn drop(&mut self) {
        use Server::{Extfuse, Nfs, Ssh};
        // Of a run that has failed nobody is to be left.
        if let Some(Extfuse { child, .. } | Ssh { child, .. } | Nfs { mountd: child, .. }) = &mut self.server
            && let Err(error) = child.kill().and_then(|()| child.wait())
        {
            eprintln!("cannot clean up: {error}");
        }
    }
}

impl Server {
    fn extfuse(tree: &Path, base: &Path) -> Result<Self> {
        let token = base.join("token");
        fs::write(&token, "of a benchmark, for nobody else\n")?;
        fs::set_permissions(&token, fs::Permissions::from_mode(0o600))?;
        let mut child = Command::new(EXTFUSE)
            .args(["serve", "--exclusive", "--listen", "127.0.0.1:0", "--token-file"])
            .args([&token, tree])
            .env("RUNTIME_DIRECTORY", base.join("run"))
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start extfuse serve")?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("extfuse serve has no stdout")?).read_line(&mut line)?;
        let address = line.split_whitespace().last().map(String::from);
        let address = address.context("extfuse serve ended")?;
        Ok(Self::Extfuse {
            child,
            address,
            token,
        })
    }

    fn ssh(base: &Path) -> Result<Self> {
        let (key, host_key) = (base.join("key"), base.join("host-key"));
        for file in [&key, &host_key] {
            let arguments = ["-q", "-t", "ed25519", "-N", "", "-f", text(file)?];
            succeed(Command::new("ssh-keygen").args(arguments))?;
        }
        let server = peers()?.join("usr/lib/openssh/sftp-server");
        let configuration = base.join("sshd.conf");
        let port = free_port()?;
        let lines = [
            format!("ListenAddress 127.0.0.1:{port}"),
            format!("HostKey {}", host_key.display()),
            format!("AuthorizedKeysFile {}.pub", key.display()),
            format!("Subsystem sftp {}", server.display()),
            "PermitRootLogin yes".into(),
            // A clock that counts instructions leaps while the guest waits for the machine.
            "LoginGraceTime 0".into(),
            "StrictModes no".into(),
            "UsePAM no".into(),
            "UseDNS no".into(),
            "PidFile none".into(),
            "LogLevel FATAL".into(),
        ];
        fs::write(&configuration, lines.join("\n") + "\n")?;
        fs::create_dir_all("/run/sshd")?;
        let child = peer("usr/sbin/sshd")?
            .args(["-D", "-e", "-f", text(&configuration)?])
            .spawn()
            .context("cannot start sshd")?;
        wait_for(port)?;
        Ok(Self::Ssh { child, port, key })
    }

    fn nfs(tree: &Path) -> Result<Self> {
        succeed(Command::new("modprobe").args(["-a", "nfsd", "nfsv4"]))?;
        if file_system_at(Path::new("/proc/fs/nfsd"))?.is_none() {
            succeed(Command::new("mount").args(["-t", "nfsd", "nfsd", "/proc/fs/nfsd"]))?;
        }
        fs::create_dir_all("/var/lib/nfs/v4recovery")?;
        for name in ["etab", "rmtab"] {
            fs::write(Path::new("/var/lib/nfs").join(name), "")?;
        }
        // Not on the disk when it is answered, as with the others.
        let options = "rw,async,fsid=0,no_root_squash,no_subtree_check,insecure";
        let export = format!("127.0.0.1:{}", text(tree)?);
        succeed(peer("usr/sbin/exportfs")?.args(["-i", "-o", options, &export]))?;
        let arguments = [
            "-N",
            "3",
            "-V",
            "4.2",
            "-G",
            "10",
            "-H",
            "127.0.0.1",
            "-p",
            NFSD_PORT,
        ];
        succeed(peer("usr/sbin/rpc.nfsd")?.args(arguments).arg(NFSD_THREADS))?;
        let mountd = peer("usr/sbin/rpc.mountd")?
            .args(["-F", "-N", "2", "-N", "3", "-V", "4", "-u"])
            .spawn()
            .context("cannot start rpc.mountd")?;
        Ok(Self::Nfs { mountd, export })
    }
}

impl Mount {
    fn check(&self) -> Result<()> {
        let Some(wanted) = self.kind else {
            return Ok(());
        };
        let found = file_system_at(&self.path)?;
        ensure!(
            found.as_deref() == Some(wanted),
            "{found:?} is mounted instead of {wanted}"
        );
        Ok(())
    }

    /// The daemon of `extfuse mount`.
    pub fn daemon(&self) -> Result<Pid> {
        self.place.as_ref().context("nobody has a daemon there")?.daemon()
    }

    /// The counters now; none where nobody counts.
    pub fn counters(&self) -> Result<Counters> {
        self.place
            .as_ref()
            .map_or(Ok(Counters::default()), Place::counters)
    }

    /// What the daemon was asked since `earlier`; None where nobody counts.
    pub fn counted_since(&self, earlier: &Counters) -> Result<Option<Counters>> {
        self.place
            .as_ref()
            .map(|place| place.counted_since(earlier))
            .transpose()
    }

    pub fn close(self) -> Result<()> {
        // A mount that is somebody's current directory could not be unmounted.
        std::env::set_current_dir("/")?;
        match self.place {
            Some(place) => place.close(),
            None if self.kind.is_some() => {
                self.check()?;
                umount(&self.path).with_context(|| format!("umount {}", self.path.display()))
            }
            None => Ok(()),
        }
    }
}

fn pid(child: &Child) -> Pid {
    Pid::from_raw(child.id() as i32)
}

fn free_port() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    Ok(listener.local_addr()?.port())
}

/// Until somebody listens.
fn wait_for(port: u16) -> Result<()> {
    for _ in 0..600 {
        if TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(50));
    }
    bail!("nobody listens on port {port}")
}

/// Process, parent, name.
fn processes() -> Result<Vec<(Pid, Pid, String)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Ok(pid) = entry?.file_name().to_string_lossy().parse() else {
            continue;
        };
        // Whoever has ended meanwhile has none.
        let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else {
            continue;
        };
        let Some((before, after)) = stat.rsplit_once(')') else {
            continue;
        };
        let name = before.split_once('(').map(|(_, name)| name).unwrap_or_default();
        let parent = after.split_whitespace().nth(1).and_then(|pid| pid.parse().ok());
        let parent = parent.context("a process without a parent")?;
        found.push((Pid::from_raw(pid), Pid::from_raw(parent), name.to_owned()));
    }
    Ok(found)
}

fn named(name: &str) -> Result<Vec<Pid>> {
    let all = processes()?.into_iter();
    Ok(all
        .filter(|(_, _, of)| of == name)
        .map(|(pid, _, _)| pid)
        .collect())
}

/// A process and its children, and theirs.
fn descendants(of: Pid) -> Result<Vec<Pid>> {
    let all = processes()?;
    let mut found = vec![of];
    let mut next = 0;
    while let Some(&parent) = found.get(next) {
        next += 1;
        found.extend(
            all.iter()
                .filter(|(_, of, _)| *of == parent)
                .map(|(pid, _, _)| pid),
        );
    }
    Ok(found)
}
