//! What is to be reached, and whether it is.

mod qcow2;

use crate::loads::Storage;
use crate::statistics::Metric;
use crate::targets::{Better, Findings, Target, is_threads, kept_limit, policy_cost};

/// The targets that the findings say something about.
pub fn judge(findings: &Findings) -> Vec<Target> {
    use Better::{Less, More};
    use Metric::{CpuUs, Iops, MbS, P50Us};
    let mut targets = Vec::new();
    let mut ratio = |load: &str, metric, better, reach, goal| {
        targets.extend(findings.ratio(load, metric, better, reach, goal));
    };
    ratio("null-co.randread.4k.d32", CpuUs, Less, 0.9, Some(0.7));
    ratio("null-co.randwrite.4k.d32", CpuUs, Less, 0.9, Some(0.7));
    ratio("null-co.randread.4k.d1", P50Us, Less, 1.0, Some(0.75));
    ratio("tmpfs.randread.4k.d32", CpuUs, Less, 0.5, Some(0.4));
    ratio("tmpfs.randwrite.4k.d32", CpuUs, Less, 0.5, Some(0.4));
    for load in ["disk.randread.4k.d32", "disk.randwrite.4k.d32"] {
        ratio(load, CpuUs, Less, 0.95, Some(0.8));
        ratio(load, Iops, More, 1.0, Some(1.1));
    }
    ratio("disk.randread.4k.d1", P50Us, Less, 1.0, Some(0.75));
    ratio("disk.randwrite.4k.d1", P50Us, Less, 1.0, Some(0.75));
    for storage in Storage::ALL {
        for operation in ["read", "write"] {
            let load = format!("{}.{operation}.128k.d16", storage.name());
            targets.extend(match storage {
                Storage::Tmpfs => findings.copying(&load),
                _ => findings.ratio(&load, MbS, More, 1.0, None),
            });
        }
    }
    for storage in Storage::ALL {
        for operation in ["randread", "randwrite"] {
            let load = format!("{}.{operation}.4k.d1.wait", storage.name());
            targets.extend(findings.waiting(&load));
        }
    }
    targets.extend(qcow2::targets(findings));
    for row in findings.rows.iter().filter(|row| is_threads(row)) {
        targets.extend(findings.threads(row, CpuUs, Less));
        targets.extend(findings.threads(row, Iops, More));
    }
    targets.extend(findings.beside_what_hangs());
    targets.extend(findings.failure_to_event());
    targets.extend(findings.monitor_while_all_hang());
    targets.extend(findings.throttled.iter().map(kept_limit));
    for found in &findings.instructions {
        targets.push(policy_cost(found, "report", found.report));
        targets.push(policy_cost(found, "no policy", found.bypass));
    }
    targets
}

#[cfg(test)]
mod tests;
