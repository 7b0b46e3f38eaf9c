//! What the kernel knows of processes: CPU time, context switches, how busy the machine is.

use anyhow::{Context, Result, bail};
use rustix::thread::CpuSet;
use serde::Serialize;
use std::fs;

/// Binds the calling thread, and what it starts from now on, to one CPU.
///
/// # Errors
/// If there is no such CPU, or it is not ours to use.
pub fn pin(cpu: usize) -> Result<()> {
    if cpu >= CpuSet::MAX_CPU {
        bail!("CPU {cpu}: there are at most {}", CpuSet::MAX_CPU);
    }
    let mut set = CpuSet::new();
    set.set(cpu);
    rustix::thread::sched_setaffinity(None, &set).with_context(|| {
        format!("cannot run on CPU {cpu} only; /proc/self/status says which are allowed")
    })
}

/// The CPUs the calling thread may run on.
///
/// # Errors
/// If the system does not tell.
pub fn allowed_cpus() -> Result<CpuSet> {
    rustix::thread::sched_getaffinity(None).context("sched_getaffinity")
}

/// Lets the calling thread run on these CPUs.
///
/// # Errors
/// If none of them is ours to use.
pub fn allow_cpus(cpus: &CpuSet) -> Result<()> {
    rustix::thread::sched_setaffinity(None, cpus).context("sched_setaffinity")
}

/// CPU time that a process has used so far in all its threads, those that have ended included.
///
/// # Errors
/// If there is no such process.
pub fn cpu_ns(pid: u32) -> Result<u64> {
    let id = libc::pid_t::try_from(pid).with_context(|| format!("{pid} is not a process id"))?;
    let mut clock: libc::clockid_t = 0;
    // SAFETY: the pointer is to a local that outlives the call, which stores a clock id or nothing.
    let error = unsafe { libc::clock_getcpuclockid(id, &raw mut clock) };
    if error != 0 {
        return Err(std::io::Error::from_raw_os_error(error))
            .with_context(|| format!("CPU clock of process {pid}"));
    }
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: as above; any clock id is taken, a bad one is an error.
    if unsafe { libc::clock_gettime(clock, &raw mut time) } != 0 {
        return Err(std::io::Error::last_os_error())
            .with_context(|| format!("CPU time of process {pid}"));
    }
    let (seconds, nanoseconds) = (u64::try_from(time.tv_sec)?, u64::try_from(time.tv_nsec)?);
    Ok(seconds * 1_000_000_000 + nanoseconds)
}

/// Context switches so far of the threads a process has now, voluntary and not.
///
/// # Errors
/// If there is no such process.
pub fn context_switches(pid: u32) -> Result<u64> {
    let threads = format!("/proc/{pid}/task");
    let mut sum = 0;
    for thread in fs::read_dir(&threads).with_context(|| threads.clone())? {
        // A thread may end while we look.
        let status = fs::read_to_string(thread?.path().join("status")).unwrap_or_default();
        sum += switches_of(&status);
    }
    Ok(sum)
}

fn switches_of(status: &str) -> u64 {
    status
        .lines()
        .filter(|line| line.contains("voluntary_ctxt_switches:"))
        .filter_map(|line| line.split_ascii_whitespace().nth(1)?.parse::<u64>().ok())
        .sum()
}

/// Time that all CPUs together have been busy so far, whoever with; other machines on the same
/// host (`steal`) included. In ns, in steps of 10 ms.
///
/// # Errors
/// If `/proc/stat` cannot be understood.
pub fn machine_busy_ns() -> Result<u64> {
    let text = fs::read_to_string("/proc/stat").context("/proc/stat")?;
    busy_ticks(&text)
        .map(|ticks| ticks * 10_000_000)
        .context("/proc/stat has no line 'cpu'")
}

/// user, nice, system, irq, softirq, steal; the rest is idle, or counted in these.
fn busy_ticks(stat: &str) -> Option<u64> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let fields: Vec<u64> = line
        .split_ascii_whitespace()
        .map_while(|field| field.parse().ok())
        .collect();
    let field = |index: usize| fields.get(index).copied();
    [0, 1, 2, 5, 6, 7].into_iter().map(field).sum()
}

/// What a process and the machine have used, at one moment or between two.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Usage {
    /// CPU time of the process, in ns.
    pub cpu_ns: u64,
    /// Its context switches.
    pub context_switches: u64,
    /// CPU time of all that is neither the process nor we, in ns.
    pub others_ns: u64,
}

/// A moment from which usage is counted.
#[derive(Debug, Clone, Copy)]
pub struct Mark {
    pid: Option<u32>,
    cpu_ns: u64,
    context_switches: u64,
    own_ns: u64,
    busy_ns: u64,
}

impl Mark {
    /// Now. Without a process only the others are counted.
    ///
    /// # Errors
    /// If there is no such process.
    pub fn now(pid: Option<u32>) -> Result<Self> {
        Ok(Self {
            pid,
            cpu_ns: pid.map_or(Ok(0), cpu_ns)?,
            context_switches: pid.map_or(Ok(0), context_switches)?,
            own_ns: cpu_ns(std::process::id())?,
            busy_ns: machine_busy_ns()?,
        })
    }

    /// What has been used since.
    ///
    /// # Errors
    /// If the process is gone.
    pub fn elapsed(&self) -> Result<Usage> {
        let now = Self::now(self.pid)?;
        let cpu_ns = now.cpu_ns - self.cpu_ns;
        let ours = cpu_ns + (now.own_ns - self.own_ns);
        Ok(Usage {
            cpu_ns,
            // Threads that have ended since take theirs with them.
            context_switches: now.context_switches.saturating_sub(self.context_switches),
            others_ns: (now.busy_ns - self.busy_ns).saturating_sub(ours),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_goes_on_and_switches_are_counted() {
        let look = || {
            let mark = Mark::now(Some(std::process::id())).unwrap();
            let mut sum = 0_u64;
            for number in 0..3_000_000_u64 {
                sum = sum.wrapping_add(std::hint::black_box(number));
            }
            std::hint::black_box(sum);
            std::thread::sleep(std::time::Duration::from_millis(1));
            mark.elapsed().unwrap()
        };
        // A thread of another test may end meanwhile, and takes what it has counted along.
        let counted = (0..100).map(|_| look());
        let counted = counted.map(|usage| usage.cpu_ns > 0 && usage.context_switches > 0);
        assert!(counted.into_iter().any(|counted| counted));
        cpu_ns(u32::MAX).unwrap_err();
    }

    #[test]
    fn both_kinds_of_switches_count() {
        let status = "Name:\tx\nvoluntary_ctxt_switches:\t7\nnonvoluntary_ctxt_switches:\t3\n";
        assert_eq!(switches_of(status), 10);
    }

    #[test]
    fn idle_and_waiting_are_not_busy() {
        let stat = "cpu  1 2 4 1000 1000 8 16 32 64 128\ncpu0 9 9 9 9\n";
        assert_eq!(busy_ticks(stat), Some(63));
        assert_eq!(busy_ticks("cpu  1 2\n"), None);
    }
}
