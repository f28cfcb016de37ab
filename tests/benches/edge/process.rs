//! What a running proxy has used so far, as the kernel counts it: CPU time by the scheduler's nanoseconds, resident memory.
//!
//! Under `peers`. Reads `/proc` of the proxy only, so the load client and the origin never count.

use rustix::{
    process::Pid,
    thread::{CpuSet, sched_setaffinity},
};
use std::{fs, time::Duration};

/// A program's processes: the one that was started, and what it forked.
pub(crate) fn family(root: i32) -> Vec<i32> {
    let mut family = vec![root];
    let mut next = 0;
    while next < family.len() {
        let pid = family[next];
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        family.extend(children.split_whitespace().filter_map(|pid| pid.parse::<i32>().ok()));
        next += 1;
    }
    family
}

fn threads(pid: i32) -> Vec<i32> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect()
}

/// CPU time of all threads, user and system.
pub(crate) fn cpu(family: &[i32]) -> Duration {
    let mut nanos = 0;
    for pid in family {
        for thread in threads(*pid) {
            let path = format!("/proc/{pid}/task/{thread}/schedstat");
            let read = fs::read_to_string(path).unwrap_or_default();
            nanos += read.split_whitespace().next().and_then(|nanos| nanos.parse::<u64>().ok()).unwrap_or(0);
        }
    }
    Duration::from_nanos(nanos)
}

/// KiB of memory: the largest process whole, of the others what they share with nobody.
pub(crate) fn resident(family: &[i32]) -> u64 {
    let mut all: Vec<(u64, u64)> = family.iter().map(|pid| memory(*pid)).collect();
    all.sort_unstable_by(|a, b| b.cmp(a));
    all.iter()
        .enumerate()
        .map(|(index, (resident, private))| if index == 0 { *resident } else { *private })
        .sum()
}

/// Resident and private KiB.
fn memory(pid: i32) -> (u64, u64) {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("the proxy still runs");
    let field = |name: &str| -> u64 {
        let line = rollup.lines().find(|line| line.starts_with(name)).expect("a field of smaps_rollup");
        line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("KiB")
    };
    (field("Rss:"), field("Private_Clean:") + field("Private_Dirty:"))
}

/// Which processors may run what.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Place {
    /// As the system likes.
    Anywhere,
    /// The proxy has the last processor, client and origin have the others.
    Apart,
    /// Everything shares the last one: no wake-up crosses processors, which takes longer than any proxy does.
    Together,
}

/// Puts a proxy and ourselves in their places. A machine with one processor has but one place.
pub(crate) fn place(family: &[i32], place: Place) {
    let count = std::thread::available_parallelism().map_or(1, usize::from).max(processors());
    let (mut theirs, mut ours) = (CpuSet::new(), CpuSet::new());
    for cpu in 0..count {
        let last = cpu + 1 == count;
        if place == Place::Anywhere || last {
            theirs.set(cpu);
        }
        if place == Place::Anywhere || last == (place == Place::Together) || count == 1 {
            ours.set(cpu);
        }
    }
    for pid in family {
        pin(*pid, &theirs);
    }
    pin(std::process::id().cast_signed(), &ours);
}

/// All of the machine's, whatever this process may use now.
pub(crate) fn processors() -> usize {
    let read = fs::read_to_string("/proc/stat").unwrap_or_default();
    let is_one =
        |line: &&str| line.starts_with("cpu") && line.as_bytes().get(3).is_some_and(u8::is_ascii_digit);
    read.lines().filter(is_one).count().max(1)
}

/// What this machine is, in a line.
pub(crate) fn machine() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model =
        info.lines().find_map(|line| Some(line.strip_prefix("model name")?.split_once(':')?.1.trim()));
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{} x {}, Linux {}", processors(), model.unwrap_or("unknown"), kernel.trim())
}

fn pin(pid: i32, set: &CpuSet) {
    for thread in threads(pid) {
        // A thread that just ended needs no place; where pinning is forbidden, figures are only less steady.
        let _ = sched_setaffinity(Pid::from_raw(thread), set);
    }
}
