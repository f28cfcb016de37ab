//! Twenty thousand idle WebSocket tunnels, and what an operator does to them: a new certificate, a new policy, a new
//! edge. Two edges with half of them each, real processes, on loopback. Prints the curve of who is connected; ends with
//! an error if an agent was lost, or if agents were told to move faster than configured. `make bench-storm`.

#![expect(clippy::unwrap_used, reason = "a benchmark may fail right where it stands")]
#![expect(clippy::disallowed_methods, reason = "it samples a curve on threads of its own")]

#[path = "storm/agents.rs"]
mod agents;
#[path = "storm/edges.rs"]
mod edges;
#[path = "storm/origin.rs"]
mod origin;

use agents::Wish;
use edges::{Edge, Ground};
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const EDGES: usize = 2;
/// Processes of agents for each edge: one may only have so many descriptors, and in a move every agent has two.
const CHILDREN: u32 = 2;
/// First dials of all agents together, in a second.
const DIALS: u32 = 400;
/// `drain.connections_per_second` of the edges.
const TOLD: u64 = 500;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    if arguments.get(1).map(String::as_str) == Some("agents") {
        return child(&arguments[2..]);
    }
    let agents: u32 = std::env::var("STORM_AGENTS").map_or(20_000, |text| text.parse().unwrap());
    let ground = Ground::new(origin::start(), TOLD);
    let each = agents / (EDGES as u32);
    let mut edges: Vec<Edge> = (0..EDGES).map(|index| Edge::start(&ground, index)).collect();
    let idle: Vec<u64> = edges.iter().map(Edge::resident).collect();
    let crowds: Vec<Crowd> =
        edges.iter().zip(0..).map(|(edge, index)| Crowd::start(edge, index * each, each, &ground)).collect();
    let storm = Storm { crowds, begin: Instant::now(), each: u64::from(each) };
    let mut trouble = Vec::new();

    println!("{agents} agents dial {EDGES} edges");
    storm.until("everybody is connected", Duration::from_secs(300), |sum| sum.connected == storm.all());
    for (edge, before) in edges.iter().zip(&idle) {
        let now = edge.resident();
        let kib = (now - before) as f64 / f64::from(each);
        println!("edge {}: {:.1} MB resident, {kib:.1} KiB a tunnel", edge.name(), now as f64 / 1024.0);
    }
    storm.rest("idle", Duration::from_secs(5), &mut trouble);

    let took = ground.new_certificate(&edges);
    println!("certificate: shown {} ms after the files were written", took.as_millis());
    storm.rest("a new certificate", Duration::from_secs(3), &mut trouble);
    let took = ground.new_policy(&edges);
    println!("policy: in force {} ms after the file was written", took.as_millis());
    storm.rest("a new policy", Duration::from_secs(3), &mut trouble);

    for (index, edge) in edges.iter_mut().enumerate() {
        println!("edge {} hands over to a successor", edge.name());
        let before = storm.sum();
        let successor = edge.successor(&ground);
        let (told, dialled) = storm.until_moved(index, &before);
        std::mem::replace(edge, successor).ended();
        println!(
            "moved; at most {told} told and {dialled} back in any second (configured: {TOLD}); resident {:.1} MB",
            edge.resident() as f64 / 1024.0
        );
        // The seconds of reader and writer need not begin together.
        if told > TOLD + TOLD / 10 {
            trouble.push(format!("{told} agents were told to move within a second"));
        }
        storm.rest("a successor", Duration::from_secs(2), &mut trouble);
    }
    let sum = storm.sum();
    println!(
        "in all: {} dials, {} told, {} lost, {} failed dials",
        sum.dialled, sum.told, sum.lost, sum.failed
    );
    if sum.connected != storm.all() {
        trouble.push(format!("{} of {} are connected in the end", sum.connected, storm.all()));
    }
    if sum.lost > 0 {
        trouble.push(format!("{} agents lost their connection without a word", sum.lost));
    }
    for what in &trouble {
        println!("NOT WELL: {what}");
    }
    if trouble.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn child(arguments: &[String]) -> ExitCode {
    let [edge, first, count, rate, ca] = arguments else { panic!("edge, first, count, rate and CA file") };
    let wish = Wish {
        edge: edge.parse().unwrap(),
        first: first.parse().unwrap(),
        count: count.parse().unwrap(),
        rate: rate.parse().unwrap(),
    };
    let ca = std::fs::read(ca).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(agents::child(wish, ca));
    ExitCode::SUCCESS
}

/// What the agents of one process, or of all, say of themselves.
#[derive(Debug, Clone, Copy, Default)]
struct Sum {
    connected: u64,
    dialled: u64,
    told: u64,
    lost: u64,
    failed: u64,
    closed: u64,
}

/// The agents of one edge.
struct Crowd {
    children: Vec<(Child, Arc<Mutex<Sum>>)>,
}

impl Crowd {
    fn start(edge: &Edge, first: u32, count: u32, ground: &Ground) -> Self {
        let each = count / CHILDREN;
        let start = |index: u32| {
            let mut child = Command::new(std::env::current_exe().unwrap())
                .arg("agents")
                .arg(edge.address.to_string())
                .args([first + index * each, each, DIALS / CHILDREN / (EDGES as u32)].map(|n| n.to_string()))
                .arg(ground.ca_file())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let lines = BufReader::new(child.stdout.take().unwrap()).lines();
            let last: Arc<Mutex<Sum>> = Arc::default();
            let seen = last.clone();
            std::thread::spawn(move || {
                for line in lines.map_while(Result::ok) {
                    let mut numbers = line.split(' ').map(|number| number.parse().unwrap());
                    let mut next = || numbers.next().unwrap();
                    let _elapsed: u64 = next();
                    *seen.lock().unwrap() = Sum {
                        connected: next(),
                        dialled: next(),
                        told: next(),
                        lost: next(),
                        failed: next(),
                        closed: next(),
                    };
                }
            });
            (child, last)
        };
        Self { children: (0..CHILDREN).map(start).collect() }
    }

    fn sum(&self) -> Sum {
        self.children.iter().fold(Sum::default(), |sum, (_, last)| {
            let last = *last.lock().unwrap();
            Sum {
                connected: sum.connected + last.connected,
                dialled: sum.dialled + last.dialled,
                told: sum.told + last.told,
                lost: sum.lost + last.lost,
                failed: sum.failed + last.failed,
                closed: sum.closed + last.closed,
            }
        })
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        for (child, _) in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

struct Storm {
    crowds: Vec<Crowd>,
    begin: Instant,
    /// Agents of one edge.
    each: u64,
}

impl Storm {
    fn all(&self) -> u64 {
        self.each * self.crowds.len() as u64
    }

    fn sum(&self) -> Sum {
        self.crowds.iter().map(Crowd::sum).fold(Sum::default(), |sum, one| Sum {
            connected: sum.connected + one.connected,
            dialled: sum.dialled + one.dialled,
            told: sum.told + one.told,
            lost: sum.lost + one.lost,
            failed: sum.failed + one.failed,
            closed: sum.closed + one.closed,
        })
    }

    fn line(&self) {
        let sum = self.sum();
        println!(
            "{:7.1} s  connected {:6}  told {:6}  dialled {:6}  old ones closed {:6}  lost {}  failed {}",
            self.begin.elapsed().as_secs_f64(),
            sum.connected,
            sum.told,
            sum.dialled,
            sum.closed,
            sum.lost,
            sum.failed
        );
    }

    /// Prints the curve until it is so.
    fn until(&self, what: &str, limit: Duration, so: impl Fn(&Sum) -> bool) {
        let begin = Instant::now();
        for tick in 0.. {
            if tick % 10 == 0 {
                self.line();
            }
            if so(&self.sum()) {
                self.line();
                println!("{what} after {:.1} s", begin.elapsed().as_secs_f64());
                return;
            }
            assert!(begin.elapsed() < limit, "not within {limit:?}: {what}");
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Nothing may happen to anybody for this long.
    fn rest(&self, after: &str, time: Duration, trouble: &mut Vec<String>) {
        let before = self.sum();
        std::thread::sleep(time);
        let now = self.sum();
        let (lost, told) = (now.lost - before.lost, now.told - before.told);
        println!("{after}: {lost} lost, {told} told to move, {} connected", now.connected);
        if lost + told > 0 || now.connected != self.all() {
            trouble.push(format!("{after}: {lost} lost, {told} told, {} connected", now.connected));
        }
    }

    /// Until every agent of this edge was told, and all are connected. The most that were told and that dialled in any
    /// whole second.
    fn until_moved(&self, edge: usize, before: &Sum) -> (u64, u64) {
        let begin = Instant::now();
        let mut seen = vec![*before];
        let (mut told, mut dialled) = (0, 0);
        for tick in 0.. {
            std::thread::sleep(Duration::from_millis(100));
            let now = self.sum();
            seen.push(now);
            let second = &seen[seen.len().saturating_sub(11)];
            told = told.max(now.told - second.told);
            dialled = dialled.max(now.dialled - second.dialled);
            if tick % 20 == 0 {
                self.line();
            }
            let moved = now.told + now.lost - before.told - before.lost >= self.each;
            if moved && now.connected == self.all() {
                self.line();
                println!("edge {edge}: everybody moved within {:.1} s", begin.elapsed().as_secs_f64());
                return (told, dialled);
            }
            assert!(begin.elapsed() < Duration::from_secs(180), "agents did not come back");
        }
        unreachable!("the loop ends by itself")
    }
}
