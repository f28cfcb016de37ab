//! For tests of what something costs: how long a processor worked for it, whatever else runs on the machine meanwhile.

use std::time::Duration;

/// Of this thread so far, in hundredths of a second.
pub(crate) fn of_this_thread() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
    // The second field is a name in brackets that may hold anything; the 14th and 15th are the user's and the system's.
    let (_, fields) = stat.rsplit_once(')').unwrap();
    let ticks: u64 =
        fields.split_whitespace().skip(11).take(2).map(|field| field.parse::<u64>().unwrap()).sum();
    Duration::from_millis(ticks * 10)
}
