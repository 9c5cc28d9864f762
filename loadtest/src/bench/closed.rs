//! The closed loop: wrk, which asks again on a connection as soon as it has the answer.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use super::process::{Server, command};
use super::{BenchError, keys};

/// Longest time that wrk may take beyond the time it is to run.
const GRACE: Duration = Duration::from_secs(10);
/// Pause between two looks whether it has ended.
const PAUSE: Duration = Duration::from_millis(5);

/// Walks a list of requests, one a line, each thread from another place; then prints one line of figures.
const SCRIPT: &str = r#"
local n_threads = 0
function setup(thread)
  thread:set("number", n_threads)
  n_threads = n_threads + 1
end
local requests, at = {}, 0
function init(args)
  wrk.headers["Host"] = "bench"
  wrk.headers["Content-Type"] = CONTENT_TYPE
  local made = {}
  for line in io.lines(LINES) do
    if made[line] == nil then
      made[line] = METHOD == "GET" and wrk.format("GET", line) or wrk.format(METHOD, PATH, nil, line)
    end
    requests[#requests + 1] = made[line]
  end
  at = math.floor(#requests * number / N_THREADS)
end
function request()
  at = at % #requests + 1
  return requests[at]
end
function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format("bench requests=%d duration_us=%d failed=%d p50_us=%d p99_us=%d p999_us=%d\n",
    summary.requests, summary.duration, e.connect + e.read + e.write + e.status + e.timeout,
    latency:percentile(50), latency:percentile(99), latency:percentile(99.9)))
end
"#;

/// What is asked for.
#[derive(Clone, Debug)]
pub(super) enum Requests<'a> {
    /// The keys of a walk, each by a GET.
    Gets(&'a [u32]),
    /// JSON documents, each by a POST to the region.
    Posts(&'a [String]),
}

/// What a run of either generator has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Seen {
    pub(super) requests: u64,
    pub(super) failed: u64,
    pub(super) duration: Duration,
    pub(super) p50_us: u64,
    pub(super) p99_us: u64,
    pub(super) p999_us: u64,
}

/// Asks for `duration`. `dir`: where the script is written.
pub(super) fn run(
    dir: &Path,
    address: SocketAddr,
    (connections, threads): (usize, usize),
    requests: &Requests,
    duration: Duration,
) -> Result<Seen, BenchError> {
    let (script, lines) = (dir.join("wrk.lua"), dir.join("wrk.txt"));
    let (method, text) = match requests {
        Requests::Gets(walk) => ("GET", walk.iter().fold(String::new(), |text, key| text + &keys::path(*key) + "\n")),
        Requests::Posts(documents) => ("POST", documents.join("\n") + "\n"),
    };
    let mut head = String::new();
    let content_type = if method == "GET" { "nil" } else { "\"application/json\"" };
    let written = write!(
        head,
        "local METHOD, PATH, LINES = {method:?}, {:?}, {:?}\nlocal N_THREADS, CONTENT_TYPE = {threads}, {content_type}\n",
        format!("/{}", super::REGION),
        lines.display().to_string(),
    );
    written.expect("a string takes all");
    std::fs::write(&lines, text).map_err(BenchError::io(&lines))?;
    std::fs::write(&script, head + SCRIPT).map_err(BenchError::io(&script))?;
    let seconds = duration.as_secs().max(1);
    let mut wrk = command("wrk")?;
    wrk.args(["-t", &threads.to_string(), "-c", &connections.to_string(), "-d", &format!("{seconds}s")]);
    wrk.arg("--latency").arg("-s").arg(&script).arg(format!("http://{address}/"));
    let out = dir.join("wrk.out");
    let file = std::fs::File::create(&out).map_err(BenchError::io(&out))?;
    let mut child = Server::spawn(wrk.stdout(file).stderr(Stdio::null()), "wrk")?;
    child.wait(Instant::now() + duration + GRACE, PAUSE)?;
    let text = std::fs::read_to_string(&out).map_err(BenchError::io(&out))?;
    parse(&text).ok_or_else(|| BenchError::Failed(format!("wrk says nothing of use about {address}: {}", text.trim())))
}

/// The line that the script prints.
fn parse(text: &str) -> Option<Seen> {
    let line = text.lines().find_map(|line| line.strip_prefix("bench "))?;
    let number = |name: &str| -> Option<u64> {
        line.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('=')?.parse().ok())
    };
    Some(Seen {
        requests: number("requests")?,
        failed: number("failed")?,
        duration: Duration::from_micros(number("duration_us")?),
        p50_us: number("p50_us")?,
        p99_us: number("p99_us")?,
        p999_us: number("p999_us")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_of_figures_is_found_among_what_wrk_prints() {
        let text = "Running 2s test @ http://127.0.0.1:1/\n  Thread Stats   Avg\n\
                    bench requests=1000 duration_us=2000000 failed=1 p50_us=300 p99_us=900 p999_us=1500\n";
        let seen = parse(text).expect("figures");
        assert_eq!((seen.requests, seen.failed, seen.duration), (1000, 1, Duration::from_secs(2)));
        assert_eq!((seen.p50_us, seen.p99_us, seen.p999_us), (300, 900, 1500));
        assert_eq!(parse("unable to connect"), None);
        assert_eq!(parse("bench requests=1"), None, "a figure is missing");
    }
}
