//! What is to be reached of images: the format costs little over a plain file, and less than the rival's.

use crate::loads::{self, Storage};
use crate::server::Server;
use crate::statistics::Metric;
use crate::targets::{Better, Findings, Target, compared};

/// The targets of images that the findings say something about.
pub fn targets(findings: &Findings) -> Vec<Target> {
    use Better::{Less, More};
    use Metric::{CpuUs, Iops, P50Us};
    let mut targets = Vec::new();
    for spec in loads::all() {
        let load = &spec.name();
        let mut ratio = |metric, better, reach, goal| {
            targets.extend(findings.ratio(load, metric, better, reach, goal));
        };
        match (spec.storage, spec.size) {
            // That of 128k requests is judged with all others of this size.
            (Storage::Qcow2, "4k") if spec.depth == 1 => {
                ratio(P50Us, Less, 1.0, Some(0.75));
                targets.extend(over_raw(findings, load));
            }
            (Storage::Qcow2, "4k") => {
                ratio(CpuUs, Less, 0.9, Some(0.7));
                ratio(Iops, More, 1.0, None);
                targets.extend(over_raw(findings, load));
            }
            (
                Storage::Qcow2Chain
                | Storage::Qcow2Overlay
                | Storage::Qcow2Data
                | Storage::Qcow2Large,
                _,
            ) if spec.depth == 1 => {
                ratio(P50Us, Less, 1.0, None);
            }
            (
                Storage::Qcow2Fresh
                | Storage::Qcow2Chain
                | Storage::Qcow2Overlay
                | Storage::Qcow2Data
                | Storage::Qcow2Large,
                _,
            ) => {
                ratio(CpuUs, Less, 1.0, Some(0.7));
                ratio(Iops, More, 1.0, None);
            }
            _ => {}
        }
    }
    targets
}

/// What the format costs: CPU per request against our own plain file.
fn over_raw(findings: &Findings, load: &str) -> Option<Target> {
    let cpu = |server| findings.median(load, server, Metric::CpuUs);
    let (image, raw) = (cpu(Server::Standfast)?, cpu(Server::StandfastRaw)?);
    let name = format!("{load}, over raw: {}", Metric::CpuUs.title());
    let mut target = compared(name, [image, raw], Better::Less, 1.2, Some(1.1));
    target.load = Some(load.to_owned());
    Some(target)
}
