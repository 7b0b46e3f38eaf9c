//! The report as a page: one file that needs nothing else, with plots as inline SVG.

use std::fmt::Write;

use crate::loads::Storage;
use crate::profile::Profile;
use crate::report::Report;
use crate::server::Server;
use crate::statistics::{Metric, Summary, short};
use crate::targets::{Row, Target, Verdict};

/// Ratios beyond this are drawn at the edge.
const RATIO_MAX: f64 = 4.0;
const ROW_PX: f64 = 26.0;
const LABEL_PX: f64 = 160.0;
const PLOT_PX: f64 = 300.0;
const FIGURES_PX: f64 = 205.0;
const TOP_PX: f64 = 34.0;

const STYLE: &str = "
:root { --bg:#fff; --fg:#1b1f24; --dim:#68707a; --line:#d9dde2; --card:#f6f8fa;
  --ours:#0b7a75; --report:#74b816; --qemu:#d9480f; --threads:#e0a100; --ours-threads:#4263eb; --raw:#9c36b5; --limit:#868e96;
  --goal:#2b8a3e; --reached:#1971c2; --missed:#c92a2a; }
@media (prefers-color-scheme: dark) { :root { --bg:#14171b; --fg:#e6e9ed; --dim:#98a2ad;
  --line:#343b43; --card:#1c2127; --ours:#3cc4bc; --report:#a9e34b; --qemu:#ff8a4c; --threads:#ffcf4d; --ours-threads:#91a7ff; --raw:#da77f2; --limit:#a6adb5;
  --goal:#51cf66; --reached:#5ab0ff; --missed:#ff6b6b; } }
* { box-sizing:border-box }
body { margin:0 auto; padding:2rem 1.25rem 4rem; max-width:1480px; background:var(--bg); color:var(--fg);
  font:15px/1.5 system-ui,sans-serif }
h1 { font-size:1.7rem; margin:0 0 .3rem } h2 { margin:2.6rem 0 .6rem; font-size:1.25rem }
p.method { color:var(--dim); margin:.1rem 0; font-size:.9rem }
p.warning { color:var(--missed); font-weight:600 }
table { border-collapse:collapse; font-variant-numeric:tabular-nums; font-size:.88rem }
th { text-align:left; color:var(--dim); font-weight:600 }
th,td { padding:.28rem .8rem .28rem 0; border-bottom:1px solid var(--line); white-space:nowrap }
td.n,th.n { text-align:right }
.scroll { overflow-x:auto }
.badge { display:inline-block; padding:.02rem .55rem; border-radius:1rem; font-size:.8rem; font-weight:600;
  color:var(--bg) }
.badge.goal { background:var(--goal) } .badge.reached { background:var(--reached) }
.badge.missed { background:var(--missed) }
.sum { display:flex; gap:1rem; margin:1.2rem 0 0; flex-wrap:wrap }
.sum div { background:var(--card); border:1px solid var(--line); border-radius:.6rem; padding:.6rem 1.2rem }
.sum b { display:block; font-size:1.6rem; line-height:1.2 }
.plots { display:flex; flex-wrap:wrap; gap:1.2rem }
figure { margin:0; background:var(--card); border:1px solid var(--line); border-radius:.6rem;
  padding:.8rem 1rem; overflow-x:auto }
figcaption { font-weight:600; margin-bottom:.2rem }
figcaption span { color:var(--dim); font-weight:400; font-size:.85rem }
pre { margin:.4rem 0 0; font-size:.8rem; line-height:1.4 }
svg { display:block } svg text { fill:var(--fg); font:12px system-ui,sans-serif }
svg text.dim { fill:var(--dim) } svg .grid { stroke:var(--line) } svg .one { stroke:var(--dim) }
.legend { display:flex; gap:1.4rem; color:var(--dim); font-size:.9rem; margin:.2rem 0 .8rem; flex-wrap:wrap }
.legend i { display:inline-block; width:.75rem; height:.75rem; border-radius:50%; margin-right:.4rem }
details { margin-top:1rem } summary { cursor:pointer; color:var(--dim) }
";

/// The page.
pub fn page(report: &Report) -> String {
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\">\
         <title>Standfast: benchmark</title><style>{STYLE}</style></head><body>\n\
         <h1>standfastd against qemu-storage-daemon</h1>\n"
    );
    for line in report.method() {
        let class = if line.contains("DISTURBED") {
            "method warning"
        } else {
            "method"
        };
        _ = writeln!(page, "<p class=\"{class}\">{}</p>", escape(&line));
    }
    targets(&mut page, &report.targets);
    profiles(&mut page, &report.profiles);
    singles(&mut page, report);
    for storage in Storage::ALL {
        let rows: Vec<&Row> = report
            .findings
            .rows
            .iter()
            .filter(|row| row.storage == storage)
            .collect();
        if !rows.is_empty() {
            section(&mut page, storage, &rows);
        }
    }
    page.push_str("</body></html>\n");
    page
}

fn targets(page: &mut String, targets: &[Target]) {
    if targets.is_empty() {
        return;
    }
    page.push_str("<div class=\"sum\">");
    for verdict in [Verdict::Goal, Verdict::Reached, Verdict::Missed] {
        let count = targets.iter().filter(|t| t.verdict == verdict).count();
        _ = write!(page, "<div><b>{count}</b>{}</div>", badge(verdict));
    }
    page.push_str(
        "</div>\n<h2>What was to be reached</h2><div class=\"scroll\"><table><tr><th>load: figure</th>\
         <th class=\"n\">standfastd</th><th class=\"n\">compared with</th><th class=\"n\">ratio or value\
         </th><th>reach</th><th>goal</th><th></th></tr>\n",
    );
    for target in targets {
        _ = writeln!(
            page,
            "<tr><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{:.2}</td>\
             <td>{}</td><td>{}</td><td>{}</td></tr>",
            escape(&target.name),
            escape(&target.ours),
            escape(&target.theirs),
            target.value,
            escape(&target.reach),
            escape(&target.goal),
            badge(target.verdict)
        );
    }
    page.push_str("</table></div>\n");
}

fn profiles(page: &mut String, profiles: &[Profile]) {
    if profiles.is_empty() {
        return;
    }
    page.push_str("<h2>What stands in the way</h2><div class=\"plots\">\n");
    for profile in profiles {
        let lines = escape(&profile.lines().join("\n"));
        let load = escape(&profile.load);
        _ = writeln!(
            page,
            "<figure><figcaption>{load}</figcaption><pre>{lines}</pre></figure>"
        );
    }
    page.push_str("</div>\n");
}

fn badge(verdict: Verdict) -> String {
    let name = verdict.name().to_lowercase();
    format!("<span class=\"badge {name}\">{name}</span>")
}

/// The error path and the instructions.
fn singles(page: &mut String, report: &Report) {
    if !report.findings.latencies.is_empty() {
        page.push_str(
            "<h2>Error path</h2><div class=\"scroll\"><table><tr><th></th><th class=\"n\">p50 us</th>\
             <th class=\"n\">p99 us</th><th class=\"n\">count</th></tr>\n",
        );
        for latency in &report.findings.latencies {
            _ = writeln!(
                page,
                "<tr><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td></tr>",
                escape(&latency.name),
                short(latency.p50_us),
                short(latency.p99_us),
                latency.count
            );
        }
        page.push_str("</table></div>\n");
    }
    if !report.findings.creations.is_empty() {
        page.push_str(
            "<h2>Making images</h2><div class=\"scroll\"><table><tr><th></th><th class=\"n\">p50 ms</th>\
             <th class=\"n\">p99 ms</th><th class=\"n\">count</th></tr>\n",
        );
        for latency in &report.findings.creations {
            _ = writeln!(
                page,
                "<tr><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td></tr>",
                escape(&latency.name),
                short(latency.p50_us / 1e3),
                short(latency.p99_us / 1e3),
                latency.count
            );
        }
        page.push_str("</table></div>\n");
    }
    if !report.findings.instructions.is_empty() {
        page.push_str(
            "<h2>User instructions per request</h2><p class=\"method\">null-co, 4k random read, counted by \
             callgrind</p><div class=\"scroll\"><table><tr><th>requests at a time</th>\
             <th class=\"n\">standfastd, stop</th><th class=\"n\">standfastd, report</th>\
             <th class=\"n\">standfastd without policy</th><th class=\"n\">qemu-storage-daemon</th></tr>\n",
        );
        for found in &report.findings.instructions {
            _ = writeln!(
                page,
                "<tr><td>{}</td><td class=\"n\">{:.1}</td><td class=\"n\">{:.1}</td>\
                 <td class=\"n\">{:.1}</td><td class=\"n\">{:.1}</td></tr>",
                found.depth, found.stop, found.report, found.bypass, found.qemu
            );
        }
        page.push_str("</table></div>\n");
    }
}

fn section(page: &mut String, storage: Storage, rows: &[&Row]) {
    let what = match storage {
        Storage::Null => "null-co: the protocol and the queue alone",
        Storage::Tmpfs => "File on tmpfs: the cost of copying",
        Storage::Disk => "File on disk, O_DIRECT",
        Storage::Qcow2 => "qcow2 on disk, O_DIRECT: clusters that are allocated",
        Storage::Qcow2Fresh => "qcow2 on disk, O_DIRECT: first writes",
        Storage::Qcow2Chain => "Five qcow2 images over each other, O_DIRECT",
        Storage::Qcow2Overlay => "qcow2 over another image, O_DIRECT: first writes, which copy",
        Storage::Qcow2Data => "qcow2 with a data file, O_DIRECT: all clusters allocated",
        Storage::Qcow2Large => "qcow2 of 1 TiB: tables that are not remembered",
    };
    _ = write!(page, "<h2>{what}</h2><div class=\"legend\">");
    let mut servers: Vec<&str> = rows.iter().map(|row| row.server).collect();
    servers.sort_unstable();
    servers.dedup();
    servers.sort_by_key(|server| order(server));
    for server in &servers {
        _ = write!(
            page,
            "<span><i style=\"background:{}\"></i>{}</span>",
            colour(server),
            escape(server)
        );
    }
    page.push_str(
        "</div>\n<p class=\"method\">Ratios to qemu-storage-daemon's median; a dot is the median, a line goes \
         from the lowest to the highest round. The figures themselves are on the right.</p>\n\
         <div class=\"plots\">\n",
    );
    for (metric, hint) in [
        (Metric::CpuUs, "server CPU per request; left is better"),
        (Metric::Iops, "requests per second; right is better"),
        (Metric::P50Us, "median latency; left is better"),
        (Metric::P99Us, "99th percentile; left is better"),
    ] {
        _ = writeln!(
            page,
            "<figure><figcaption>{} <span>{hint}</span></figcaption>\n{}</figure>",
            metric.title(),
            plot(rows, metric)
        );
    }
    page.push_str("</div>\n");
    all_figures(page, rows);
}

/// One line per load, the rival's median at 1.
fn plot(rows: &[&Row], metric: Metric) -> String {
    let mut loads: Vec<&str> = rows.iter().map(|row| row.load.as_str()).collect();
    loads.dedup();
    let count = u32::try_from(loads.len()).unwrap_or(0);
    let height = TOP_PX + f64::from(count) * ROW_PX + 6.0;
    let width = LABEL_PX + PLOT_PX + FIGURES_PX;
    let mut svg = format!(
        "<svg width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" role=\"img\" \
         aria-label=\"{}\">\n",
        metric.title()
    );
    for ratio in [0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 4.0] {
        let x = position(ratio);
        let class = if ratio == 1.0 { "one" } else { "grid" };
        _ = writeln!(
            svg,
            "<line class=\"{class}\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{:.1}\" y2=\"{height:.1}\"/>\
             <text class=\"dim\" x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{ratio}</text>",
            TOP_PX - 8.0,
            TOP_PX - 14.0
        );
    }
    let mut y = TOP_PX + ROW_PX / 2.0;
    for load in loads {
        let of_load: Vec<&&Row> = rows.iter().filter(|row| row.load == load).collect();
        let label = load.split_once('.').map_or(load, |(_, rest)| rest);
        _ = writeln!(
            svg,
            "<text x=\"0\" y=\"{:.1}\">{}</text>",
            y + 4.0,
            escape(label)
        );
        let rival = of_load
            .iter()
            .find(|row| row.server == Server::Qemu.name())
            .and_then(|row| row.figures.get(&metric))
            .map(|summary| summary.median)
            .filter(|median| *median > 0.0);
        let mut sorted = of_load.clone();
        // Ours is drawn last, on top.
        sorted.sort_by_key(|row| std::cmp::Reverse(order(row.server)));
        for row in &sorted {
            if let (Some(summary), Some(rival)) = (row.figures.get(&metric), rival) {
                mark(&mut svg, row.server, *summary, rival, y);
            }
        }
        figures(&mut svg, &of_load, metric, y);
        y += ROW_PX;
    }
    svg.push_str("</svg>\n");
    svg
}

/// Median as a dot, lowest to highest as a line.
fn mark(svg: &mut String, server: &str, summary: Summary, rival: f64, y: f64) {
    let [min, median, max] =
        [summary.min, summary.median, summary.max].map(|figure| position(figure / rival));
    let colour = colour(server);
    _ = writeln!(
        svg,
        "<g stroke=\"{colour}\" fill=\"{colour}\"><title>{}: {} [{}..{}]</title>\
         <line x1=\"{min:.1}\" x2=\"{max:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke-width=\"2\" \
         opacity=\".55\"/><circle cx=\"{median:.1}\" cy=\"{y:.1}\" r=\"5\" stroke=\"none\"/></g>",
        escape(server),
        short(summary.median),
        short(summary.min),
        short(summary.max)
    );
}

/// The medians themselves, ours first.
fn figures(svg: &mut String, rows: &[&&Row], metric: Metric, y: f64) {
    let mut x = LABEL_PX + PLOT_PX + 18.0;
    let mut sorted = rows.to_vec();
    sorted.sort_by_key(|row| order(row.server));
    for row in sorted {
        if let Some(summary) = row.figures.get(&metric) {
            _ = writeln!(
                svg,
                "<text x=\"{x:.1}\" y=\"{:.1}\" style=\"fill:{}\">{}</text>",
                y + 4.0,
                colour(row.server),
                short(summary.median)
            );
        }
        x += 48.0;
    }
}

/// Where a ratio is drawn: halves and doubles are equally far from 1.
fn position(ratio: f64) -> f64 {
    let ratio = if ratio.is_finite() { ratio } else { RATIO_MAX };
    let log = ratio.clamp(1.0 / RATIO_MAX, RATIO_MAX).log2() / RATIO_MAX.log2();
    LABEL_PX + PLOT_PX * (log + 1.0) / 2.0
}

fn all_figures(page: &mut String, rows: &[&Row]) {
    page.push_str(
        "<details><summary>All figures: median [lowest..highest]</summary><div class=\"scroll\"><table>\
         <tr><th>load</th><th>server</th>",
    );
    for metric in Metric::ALL {
        _ = write!(page, "<th class=\"n\">{}</th>", metric.title());
    }
    page.push_str("</tr>\n");
    for row in rows {
        _ = write!(
            page,
            "<tr><td>{}</td><td>{}</td>",
            escape(&row.load),
            escape(row.server)
        );
        for metric in Metric::ALL {
            let cell = row.figures.get(&metric).map_or_else(String::new, |s| {
                format!("{} [{}..{}]", short(s.median), short(s.min), short(s.max))
            });
            _ = write!(page, "<td class=\"n\">{cell}</td>");
        }
        page.push_str("</tr>\n");
    }
    page.push_str("</table></div></details>\n");
}

fn order(server: &str) -> usize {
    [
        Server::Standfast.name(),
        Server::StandfastReport.name(),
        Server::Qemu.name(),
        Server::QemuThreads.name(),
        Server::StandfastThreads.name(),
        Server::StandfastRaw.name(),
    ]
    .iter()
    .position(|name| *name == server)
    .unwrap_or(usize::MAX)
}

fn colour(server: &str) -> &'static str {
    match order(server) {
        0 => "var(--ours)",
        1 => "var(--report)",
        2 => "var(--qemu)",
        3 => "var(--threads)",
        4 => "var(--ours-threads)",
        5 => "var(--raw)",
        _ => "var(--limit)",
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_in_the_middle_and_nothing_is_outside() {
        let middle = LABEL_PX + PLOT_PX / 2.0;
        assert!((position(1.0) - middle).abs() < 1e-9);
        assert!((position(2.0) - middle - (middle - position(0.5))).abs() < 1e-9);
        for ratio in [0.0, 1e-9, 1e9, f64::NAN, f64::INFINITY] {
            assert!((LABEL_PX..=LABEL_PX + PLOT_PX).contains(&position(ratio)));
        }
    }

    #[test]
    fn text_is_not_markup() {
        assert_eq!(escape("a <= b & c"), "a &lt;= b &amp; c");
    }
}
