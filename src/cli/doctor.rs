// SPDX-License-Identifier: MIT OR Apache-2.0
//! `extfuse doctor`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use extfuse::sys::kernel;
use extfuse::sys::mount::Flavor;
use extfuse::sys::process::{Capability, has_capability};
use nix::errno::Errno;
use serde::Serialize;

use super::{Failure, say};

/// Show what this machine has and lacks for extfuse, and what to do about it.
///
/// The exit code is 0 if directories can be mounted at all, through stock FUSE at least.
#[derive(Debug, Args)]
pub struct Doctor {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What lacks if a check fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum For {
    /// Any mount at all.
    Mounting,
    /// Answers in the kernel.
    Extfuse,
    /// Building module and handlers here.
    Building,
    /// Something that not everybody wants.
    Comfort,
}

#[derive(Debug, Serialize)]
struct Check {
    name: &'static str,
    ok: bool,
    needed_for: For,
    found: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    advice: String,
}

impl Doctor {
    pub fn run(self) -> Result<ExitCode, Failure> {
        let checks = checks();
        if self.json {
            say(&(serde_json::to_string_pretty(&checks)? + "\n"))?;
        } else {
            say(&checks.iter().map(line).collect::<String>())?;
        }
        let works = checks
            .iter()
            .all(|check| check.ok || check.needed_for != For::Mounting);
        Ok(if works {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }
}

fn line(check: &Check) -> String {
    let state = match (check.ok, check.needed_for) {
        (true, _) => "OK",
        (false, For::Comfort) => "note",
        (false, _) => "missing",
    };
    let advice = if check.advice.is_empty() {
        String::new()
    } else {
        format!(" -> {}", check.advice)
    };
    format!("{state:<8} {:<22} {}{advice}\n", check.name, check.found)
}

/// `advice` is only given with bad news.
fn check(
    name: &'static str,
    needed_for: For,
    ok: bool,
    found: impl Into<String>,
    advice: impl Into<String>,
) -> Check {
    let advice = if ok { String::new() } else { advice.into() };
    Check {
        name,
        ok,
        needed_for,
        found: found.into(),
        advice,
    }
}

fn checks() -> Vec<Check> {
    let mut checks = vec![kernel_version()];
    checks.extend(stock());
    checks.push(module());
    checks.extend(kernel_features());
    checks.extend(tools());
    checks.extend(limits());
    checks
}

fn kernel_version() -> Check {
    let release = kernel::release();
    let fits = kernel::version(&release) == Some((6, 12));
    let found = if fits {
        release
    } else {
        format!("{release}, the module is for 6.12")
    };
    check(
        "kernel",
        For::Extfuse,
        fits,
        found,
        "stock FUSE works; for the module boot a 6.12 kernel, or scripts/vm",
    )
}

fn stock() -> [Check; 2] {
    let path = Flavor::Stock.device();
    let fusermount = kernel::program("fusermount3");
    let admin = has_capability(Capability::SysAdmin);
    let device = match kernel::device(path) {
        Ok(()) => check("/dev/fuse", For::Mounting, true, "can be opened", ""),
        // fusermount3 opens it as who calls it.
        Err(Errno::EACCES | Errno::EPERM) => check(
            "/dev/fuse",
            For::Mounting,
            false,
            "not for you",
            "chmod 666 /dev/fuse, as root; udev does so",
        ),
        Err(errno) => check(
            "/dev/fuse",
            For::Mounting,
            false,
            errno.desc(),
            "modprobe fuse, as root",
        ),
    };
    let bpf = if has_capability(Capability::Bpf) {
        ", CAP_BPF"
    } else {
        ""
    };
    let found = match (admin, &fusermount) {
        (true, _) => format!("CAP_SYS_ADMIN{bpf}"),
        (false, Some(path)) => format!("no CAP_SYS_ADMIN: stock FUSE only, by {}", path.display()),
        (false, None) => "no CAP_SYS_ADMIN, and no fusermount3".into(),
    };
    let privileges = check(
        "privileges",
        For::Mounting,
        admin || fusermount.is_some(),
        found,
        "run as root, or apt install fuse3",
    );
    [device, privileges]
}

fn module() -> Check {
    let loaded = kernel::knows_file_system("extfuse");
    let (found, advice) = match (loaded, kernel::refuses_modules()) {
        (true, _) => ("loaded".to_owned(), String::new()),
        (false, Some(reason)) => (
            format!("not loaded, and this kernel takes no modules: {reason}"),
            "scripts/vm".into(),
        ),
        (false, None) => (
            "not loaded".into(),
            "scripts/build-module --install, then modprobe extfuse".into(),
        ),
    };
    check("extfuse module", For::Extfuse, loaded, found, advice)
}

fn kernel_features() -> [Check; 4] {
    const PASSTHROUGH: &str = "fuse_backing_open";
    const STRUCT_OPS: &str = "__register_bpf_struct_ops";
    let symbols = kernel::symbols(&[PASSTHROUGH, STRUCT_OPS]);
    let built = |symbol| symbols.as_ref().map(|symbols| symbols.contains(symbol));
    let say = |has: Option<bool>| match has {
        Some(true) => "built in",
        Some(false) => "not built in",
        None => "cannot tell: no /proc/kallsyms",
    };
    let (passthrough, struct_ops) = (built(PASSTHROUGH), built(STRUCT_OPS));
    let jit = kernel::bpf_jit();
    let jit_found = match jit {
        Some(true) => "on",
        Some(false) => "off: handlers are interpreted",
        None => "not built in",
    };
    [
        check(
            "FUSE passthrough",
            For::Comfort,
            passthrough == Some(true),
            say(passthrough),
            "reads and writes go through the daemon; CONFIG_FUSE_PASSTHROUGH (6.9 and later)",
        ),
        check(
            "BTF",
            For::Extfuse,
            kernel::has_btf(),
            if kernel::has_btf() {
                "/sys/kernel/btf/vmlinux"
            } else {
                "no /sys/kernel/btf/vmlinux"
            },
            "a kernel with CONFIG_DEBUG_INFO_BTF",
        ),
        check(
            "BPF struct_ops",
            For::Extfuse,
            struct_ops == Some(true),
            say(struct_ops),
            "a kernel with CONFIG_BPF_JIT and CONFIG_DEBUG_INFO_BTF, 6.9 or later",
        ),
        check(
            "BPF JIT",
            For::Extfuse,
            jit == Some(true),
            jit_found,
            "sysctl net.core.bpf_jit_enable=1",
        ),
    ]
}

fn tools() -> [Check; 3] {
    let release = kernel::release();
    let tool = |name, path: Option<PathBuf>, advice: String| {
        let found = path
            .as_deref()
            .map_or_else(|| "not found".into(), |path: &Path| path.display().to_string());
        check(name, For::Building, path.is_some(), found, advice)
    };
    [
        tool(
            "clang",
            kernel::clang(),
            "apt install clang (15 or later), or set $CLANG".into(),
        ),
        tool(
            "kernel headers",
            kernel::headers(&release),
            format!("apt install linux-headers-{release}; the guest has its own"),
        ),
        tool(
            "qemu",
            kernel::program("qemu-system-x86_64"),
            "apt install qemu-system-x86 (for the guest)".into(),
        ),
    ]
}

fn limits() -> [Check; 2] {
    // The daemon raises it itself, as root beyond the hard limit too.
    const ENOUGH: u64 = 65536;
    let unlimited = has_capability(Capability::SysResource);
    let (now, most) = kernel::open_files().unwrap_or_default();
    let can = if unlimited {
        "more".into()
    } else {
        most.to_string()
    };
    let allow_other = kernel::user_allow_other();
    [
        check(
            "open files",
            For::Comfort,
            unlimited || most >= ENOUGH,
            format!("{now}, the daemon may have {can}"),
            "raise the hard limit (ulimit -Hn): every file that is looked at takes one",
        ),
        check(
            "user_allow_other",
            For::Comfort,
            allow_other,
            if allow_other {
                "set in /etc/fuse.conf"
            } else {
                "not set in /etc/fuse.conf"
            },
            "needed only where users without privilege want -o allow_other",
        ),
    ]
}
