//! Mutation testing of the engine. README.md says how and why.

mod find;
mod schema;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use find::Mutant;
use serde_json::{Value, json};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// A part of the program, and the tests that it is judged by.
struct Target {
    name: &'static str,
    krate: &'static str,
    /// Where its crate begins.
    root: &'static str,
    /// Folders and files that mutants are made of.
    sources: &'static [&'static str],
    count: usize,
    /// Functions whose every mutant joins the sample.
    whole: &'static [&'static str],
    build: &'static [&'static str],
    tests: &'static [&'static str],
    /// Whether a file's own tests begin with its name, and come first: most mutants fall there.
    own: bool,
    /// How much the tests draw: a variable of the environment and its value.
    draws: (&'static str, &'static str),
}

const TARGETS: [Target; 3] = [
    Target {
        name: "kernels",
        krate: "tiergrad-kernels-cpu",
        root: "kernels-cpu/src/lib.rs",
        sources: &["kernels-cpu/src"],
        count: 200,
        whole: &[],
        build: &["--lib"],
        tests: &[],
        own: true,
        draws: ("PROPTEST_CASES", "48"),
    },
    Target {
        name: "ops",
        krate: "tiergrad",
        root: "src/lib.rs",
        sources: &["src/ops", "src/tape.rs"],
        count: 90,
        whole: &[],
        build: &["--lib", "--no-default-features"],
        tests: &["ops::", "tape::", "plan::", "gradcheck::"],
        own: true,
        draws: ("PROPTEST_CASES", "24"),
    },
    Target {
        name: "graph",
        krate: "tiergrad-fuzz-targets",
        root: "src/lib.rs",
        sources: &["src/ops", "src/tape.rs", "src/plan", "src/plan.rs"],
        count: 100,
        whole: &["Builder::join", "sum_to"],
        build: &["--test", "corpus"],
        tests: &["random_graphs"],
        own: false,
        draws: ("TIER_FUZZ_GRAPHS", "2000"),
    },
];

/// The mutated crates are built for short builds; the definition of a kernel has the same bits however it is optimised.
const PROFILE: &[&str] =
    &["--config", "profile.dev.package.tiergrad-kernels-cpu.opt-level=1", "--config", "profile.dev.debug=0"];

struct Options {
    target: &'static Target,
    seed: u64,
    count: usize,
    work: PathBuf,
    log: PathBuf,
    again: bool,
    list: bool,
}

fn options() -> Result<Options> {
    let usage =
        "mutants kernels|ops|graph [--seed 1] [--count N] [--work target/mutants] [--log FILE] [--again] [--list]";
    let mut arguments = std::env::args().skip(1);
    let name = arguments.next().ok_or(usage)?;
    let target = TARGETS.iter().find(|t| t.name == name).ok_or(usage)?;
    let root = PathBuf::from("target/mutants");
    let mut o =
        Options { target, seed: 1, count: target.count, work: root, log: PathBuf::new(), again: false, list: false };
    while let Some(flag) = arguments.next() {
        let mut value = || arguments.next().ok_or(usage);
        match flag.as_str() {
            "--seed" => o.seed = value()?.parse()?,
            "--count" => o.count = value()?.parse()?,
            "--work" => o.work = value()?.into(),
            "--log" => o.log = value()?.into(),
            "--again" => o.again = true,
            "--list" => o.list = true,
            _ => return Err(usage.into()),
        }
    }
    if o.log.as_os_str().is_empty() {
        o.log = o.work.join(format!("{name}.jsonl"));
    }
    Ok(o)
}

/// What a mutant is known by when lines have moved: which of those that read the same in its function.
fn keys(mutants: &[Mutant]) -> Vec<String> {
    let mut seen = BTreeMap::new();
    let key = |m: &Mutant| {
        let key = format!("{} {}: {} => {}", m.file, m.function, m.before, m.after);
        let n = seen.entry(key.clone()).and_modify(|n| *n += 1).or_insert(0);
        format!("{key} #{n}")
    };
    mutants.iter().map(key).collect()
}

/// FNV-1a, finished by a multiplication of its own: an order that a change elsewhere does not disturb.
fn hash(seed: u64, key: &str) -> u64 {
    let step = |h: u64, b: u8| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3);
    let h = seed.to_le_bytes().into_iter().chain(key.bytes()).fold(0xcbf2_9ce4_8422_2325, step);
    (h ^ (h >> 29)).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

fn rust_files(path: &Path, into: &mut Vec<PathBuf>) -> Result<()> {
    if path.is_dir() {
        let mut entries: Vec<PathBuf> = fs::read_dir(path)?.map(|e| Ok(e?.path())).collect::<std::io::Result<_>>()?;
        entries.sort();
        entries.iter().try_for_each(|entry| rust_files(entry, into))?;
    } else if path.extension().is_some_and(|e| e == "rs") {
        into.push(path.to_owned());
    }
    Ok(())
}

fn sample(o: &Options) -> Result<Vec<(String, Mutant)>> {
    let mut files = Vec::new();
    o.target.sources.iter().try_for_each(|source| rust_files(Path::new(source), &mut files))?;
    let mut all = Vec::new();
    for file in files {
        let name = file.to_str().ok_or("a path that is not UTF-8")?;
        all.extend(find::find(name, &fs::read_to_string(&file)?).map_err(|e| format!("{name}: {e}"))?);
    }
    eprintln!("{} possible mutants", all.len());
    let mut keyed: Vec<(String, Mutant)> = keys(&all).into_iter().zip(all).collect();
    keyed.sort_by_key(|(key, _)| hash(o.seed, key));
    let mut rest = keyed.split_off(o.count.min(keyed.len()));
    rest.retain(|(_, m)| o.target.whole.contains(&m.function.as_str()));
    keyed.extend(rest);
    Ok(keyed)
}

fn write_changed(path: &Path, bytes: &[u8]) -> Result<()> {
    if fs::read(path).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    fs::create_dir_all(path.parent().ok_or("no folder")?)?;
    Ok(fs::write(path, bytes)?)
}

/// What git knows or would take.
fn tree() -> Result<BTreeMap<String, Vec<u8>>> {
    let listed = Command::new("git").args(["ls-files", "-z", "-co", "--exclude-standard"]).output()?.stdout;
    let names = String::from_utf8(listed)?;
    Ok(names.split('\0').filter_map(|name| Some((name.to_owned(), fs::read(name).ok()?))).collect())
}

fn cargo(o: &Options, command: &[&str]) -> Result<Vec<Value>> {
    let mut cargo = Command::new("cargo");
    cargo.current_dir(o.work.join(o.target.name)).env("CARGO_TARGET_DIR", fs::canonicalize(&o.work)?.join("target"));
    cargo.args(command).args(["-p", o.target.krate, "--message-format", "json"]).args(o.target.build).args(PROFILE);
    let output = cargo.stderr(Stdio::inherit()).output()?;
    Ok(output.stdout.split(|&b| b == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect())
}

/// Writes the tree with every mutant that compiles and gives those that do not. Numbers are from 1.
///
/// What is known not to compile is left out from the start, so that a run that goes on finds its build done.
fn plant(o: &Options, mutants: &[(String, Mutant)], known: &BTreeMap<String, String>) -> Result<BTreeSet<usize>> {
    let mut files = tree()?;
    let root = Path::new(o.target.root);
    files.insert(path_text(&root.with_file_name("mutants.rs"))?, schema::SWITCH.as_bytes().to_vec());
    files.get_mut(o.target.root).ok_or("no root")?.extend(b"\n#[allow(dead_code)]\nmod mutants;\n");
    let known = |key: &String| known.get(key).is_some_and(|verdict| verdict == "unviable");
    let mut unviable: BTreeSet<usize> =
        mutants.iter().enumerate().filter(|(_, (key, _))| known(key)).map(|(i, _)| i + 1).collect();
    loop {
        let mut places = Vec::new();
        for (name, bytes) in &files {
            let here = |(i, (_, m)): (usize, &'_ (String, Mutant))| (m.file == *name).then_some(i + 1);
            let ids: Vec<usize> =
                mutants.iter().enumerate().filter_map(here).filter(|id| !unviable.contains(id)).collect();
            let of_file: Vec<(usize, &Mutant)> = ids.iter().map(|&id| (id, &mutants[id - 1].1)).collect();
            let to = o.work.join(o.target.name).join(name);
            if of_file.is_empty() {
                write_changed(&to, bytes)?;
                continue;
            }
            let (text, found) = schema::build(std::str::from_utf8(bytes)?, &of_file);
            places.extend(found.into_iter().map(|(id, range)| (name.as_str(), id, range)));
            write_changed(&to, text.as_bytes())?;
        }
        let messages = cargo(o, &["check", "--profile", "test"])?;
        let errors: Vec<&Value> = messages.iter().map(|m| &m["message"]).filter(|m| m["level"] == "error").collect();
        if errors.is_empty() {
            return Ok(unviable);
        }
        let before = unviable.len();
        for span in errors.iter().flat_map(|e| e["spans"].as_array().into_iter().flatten()) {
            let at = |end: &str| span[end].as_u64().map_or(0, |n| n as usize);
            let here = |(name, _, range): &&(&str, usize, std::ops::Range<usize>)| {
                span["file_name"] == *name && range.start <= at("byte_start") && at("byte_end") <= range.end
            };
            let innermost = places.iter().filter(here).min_by_key(|(_, _, range)| range.len());
            unviable.extend(innermost.filter(|_| span["is_primary"] == true).map(|(_, id, _)| *id));
        }
        if unviable.len() == before {
            let text: String = errors.iter().filter_map(|e| e["rendered"].as_str()).collect();
            return Err(format!("errors outside of mutants:\n{text}").into());
        }
        eprintln!("{} mutants do not compile", unviable.len());
    }
}

/// The program of the tests, with what was planted.
fn build(o: &Options) -> Result<PathBuf> {
    let messages = cargo(o, &["test", "--no-run"])?;
    let tests = messages.iter().filter(|m| m["profile"]["test"] == true).find_map(|m| m["executable"].as_str());
    Ok(tests.ok_or("the tests were not built")?.into())
}

fn path_text(path: &Path) -> Result<String> {
    Ok(path.to_str().ok_or("a path that is not UTF-8")?.to_owned())
}

/// What ends a process that has used up its time.
const SIGXCPU: i32 = 24;

/// How the tests end with a mutant on: the verdict and the test that fell first.
fn judge(o: &Options, tests: &Path, filters: &[&str], id: usize, limit: u64) -> Result<(&'static str, String)> {
    // Seconds of the processor are limited, which a busy machine does not shorten; a deadlock, which takes none, has an hour's sixth.
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -t $0; exec \"$@\"", &limit.to_string()]).arg(tests).args(filters);
    let folder = Path::new(o.target.root).ancestors().nth(2).ok_or("no folder")?;
    command.current_dir(o.work.join(o.target.name).join(folder));
    command.env("MUTANT", id.to_string()).env(o.target.draws.0, o.target.draws.1).env("PROPTEST_MAX_SHRINK_ITERS", "0");
    command.env("CARGO_MANIFEST_DIR", ".").env("RUST_BACKTRACE", "0");
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let (send, lines) = mpsc::channel();
    let out = BufReader::new(child.stdout.take().ok_or("no output")?);
    let reader =
        std::thread::spawn(move || out.lines().map_while(std::result::Result::ok).all(|line| send.send(line).is_ok()));
    let end = Instant::now() + Duration::from_secs(600);
    let verdict = loop {
        match lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(line) if line.starts_with("test ") && line.ends_with(" FAILED") => {
                break ("killed", line[5..].trim_end_matches(" ... FAILED").to_owned());
            }
            Ok(_) => {}
            Err(mpsc::RecvTimeoutError::Timeout) => break ("timeout", String::new()),
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                let status = child.wait()?;
                break match status.signal() {
                    _ if status.success() => ("survived", String::new()),
                    Some(SIGXCPU) => ("timeout", String::new()),
                    _ => ("killed", status.to_string()),
                };
            }
        }
    };
    // It may have ended by itself.
    let _ = child.kill();
    child.wait()?;
    drop(lines);
    let _ = reader.join();
    Ok(verdict)
}

/// How the tests of a file begin: `gemm::`, also for `gemm/nest.rs`; `ops::loss::`.
fn room(file: &str) -> String {
    let inside = file.split_once("src/").map_or(file, |(_, inside)| inside).trim_end_matches(".rs");
    match inside.split_once('/') {
        Some(("ops", op)) => format!("ops::{op}::"),
        Some((room, _)) => format!("{room}::"),
        None => format!("{inside}::"),
    }
}

/// The last verdict of each mutant in the log.
fn read_log(path: &Path) -> Result<BTreeMap<String, String>> {
    let Ok(text) = fs::read_to_string(path) else { return Ok(BTreeMap::new()) };
    let mut verdicts = BTreeMap::new();
    // A line that was cut off is one of a mutant that was not judged.
    for line in text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
        if let (Some(key), Some(verdict)) = (line["key"].as_str(), line["verdict"].as_str()) {
            verdicts.insert(key.to_owned(), verdict.to_owned());
        }
    }
    Ok(verdicts)
}

/// Mutants that these tests cannot tell from the original, by key with single spaces, and why.
fn explained(target: &str) -> Result<BTreeMap<String, String>> {
    let text = fs::read_to_string(format!("tests/mutants/explained/{target}.txt"))?;
    let pair = |line: &str| line.rsplit_once(" | ").map(|(key, why)| (squeezed(key), why.to_owned()));
    Ok(text.lines().filter(|line| !line.starts_with('#')).filter_map(pair).collect())
}

fn squeezed(key: &str) -> String {
    key.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn main() -> Result<()> {
    let o = options()?;
    let explained = explained(o.target.name)?;
    let mutants = sample(&o)?;
    if o.list {
        for (key, m) in &mutants {
            println!("{}:{} {key}", m.file, m.line);
        }
        return Ok(());
    }
    fs::create_dir_all(&o.work)?;
    let judged = read_log(&o.log)?;
    let open = |key: &String| {
        judged.get(key).is_none_or(|v| o.again && v == "survived" && !explained.contains_key(&squeezed(key)))
    };
    let unviable = plant(&o, &mutants, &judged)?;
    let mut log = fs::OpenOptions::new().create(true).append(true).open(&o.log)?;
    let mut record = |i: usize, verdict: &str, by: &str, began: Instant| -> Result<()> {
        let (key, m) = &mutants[i];
        let seconds = (began.elapsed().as_secs_f64() * 10.0).round() / 10.0;
        let line = json!({ "key": key, "file": m.file, "line": m.line, "function": m.function, "before": m.before,
            "after": m.after, "verdict": verdict, "by": by, "seconds": seconds });
        eprintln!("{:3}/{} {verdict:8} {}:{} {}", i + 1, mutants.len(), m.file, m.line, m.function);
        Ok(writeln!(log, "{line}")?)
    };
    let pending: Vec<usize> = (0..mutants.len()).filter(|&i| open(&mutants[i].0)).collect();
    for &i in pending.iter().filter(|&i| unviable.contains(&(i + 1))) {
        record(i, "unviable", "", Instant::now())?;
    }
    let tests = build(&o)?;
    let began = Instant::now();
    let (verdict, by) = judge(&o, &tests, o.target.tests, 0, 600)?;
    if verdict != "survived" {
        return Err(format!("the tests fail without a mutant: {verdict} {by}").into());
    }
    // On two threads: four times as long, and 20 s, is an endless loop.
    let limit = 8 * began.elapsed().as_secs() + 20;
    eprintln!("without a mutant: {:.1} s; at most {limit} s of the processor each", began.elapsed().as_secs_f64());
    for &i in pending.iter().filter(|&i| !unviable.contains(&(i + 1))) {
        let began = Instant::now();
        let own = room(&mutants[i].1.file);
        let rounds = [&[own.as_str()], o.target.tests];
        let (mut verdict, mut by) = ("survived", String::new());
        for filters in &rounds[usize::from(!o.target.own)..] {
            if verdict == "survived" {
                (verdict, by) = judge(&o, &tests, filters, i + 1, limit)?;
            }
        }
        record(i, verdict, &by, began)?;
    }
    let verdicts = read_log(&o.log)?;
    let with =
        |verdict: &str| mutants.iter().filter(|(key, _)| verdicts.get(key).is_some_and(|v| v == verdict)).count();
    let (killed, survived) = (with("killed") + with("timeout"), with("survived"));
    let mut unexplained = 0;
    for (key, m) in mutants.iter().filter(|(key, _)| verdicts.get(key).is_some_and(|v| v == "survived")) {
        let why = explained.get(&squeezed(key));
        unexplained += usize::from(why.is_none());
        println!("survived  {}:{} {}", m.file, m.line, squeezed(key));
        println!("          {}", why.map_or("NOT EXPLAINED", String::as_str));
    }
    let score = 100.0 * killed as f64 / (killed + survived).max(1) as f64;
    println!(
        "{killed} of {} viable mutants killed ({score:.1} %), {} do not compile",
        killed + survived,
        with("unviable")
    );
    if unexplained > 0 {
        return Err(format!("{unexplained} survivors are not explained").into());
    }
    Ok(())
}
