//! What goes wrong with containers: stopped, killed, cut off, replaced, the core among them.
//!
//! | what | must hold |
//! |---|---|
//! | `docker stop` of a plugin | ends by itself within 10 s, code 0; STARTED again after `docker start` |
//! | `docker kill`, or a crash | STARTED again in a new run within 10 s, after a crash without anybody's help |
//! | cut off for 3 s | the same run goes on |
//! | cut off for 60 s | degraded within 15 s, the run ended within 30 s, STARTED again within 30 s of its return |
//! | the core stopped, killed, crashed | plugins that go on running are STARTED again within 30 s |

use std::fs;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, ensure};

use crate::children::kill;
use crate::figures::Figures;
use crate::scene;
use crate::stack::{PLUGINS, Plugin, Stack};
use crate::step;

const SHORT_CUT: Duration = Duration::from_secs(3);
const LONG_CUT: Duration = Duration::from_secs(60);
/// Plugins that end when they lose the core; the engine starts them again.
const ENDS_WITHOUT_CORE: &str = "sunlight";

/// Sizes of images, and the memory of processes that have little to do.
pub(crate) fn idle(stack: &Stack<'_>, figures: &Figures) -> Result<()> {
    step("figures at rest");
    for service in PLUGINS.into_iter().chain([stack.core]) {
        let image = stack.engine.inspect(service, "{{.Image}}")?;
        let size = ["image", "inspect", "--format", "{{.Size}}", &image];
        let bytes: f64 = stack.engine.docker(&size)?.trim().parse()?;
        figures.measured(format!("{service}: image"), bytes / 1e6, "MB");
    }
    for service in PLUGINS.into_iter().chain([stack.core]) {
        let status = fs::read_to_string(format!("/proc/{}/status", stack.pid(service)?))
            .context("is the engine on this machine?")?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let kilobytes = line.and_then(|line| line.split_whitespace().next());
            kilobytes.and_then(|number| number.parse::<f64>().ok())
        };
        let resident = field("VmRSS:").context("no VmRSS")?;
        let own = field("RssAnon:").context("no RssAnon")?;
        figures.measured(format!("{service}: resident"), resident / 1024.0, "MiB");
        figures.measured(
            format!("{service}: of it not the program"),
            own / 1024.0,
            "MiB",
        );
    }
    Ok(())
}

/// What happens to plugins. The long cut waits while the others are played.
pub(crate) fn of_plugins(stack: &Stack<'_>, figures: &Figures) -> Result<()> {
    let (long, others) = std::thread::scope(|threads| {
        let long = threads.spawn(|| cut_off_for_long(stack, figures, "host_sensors"));
        let others = one_after_the_other(stack, figures);
        (long.join().expect("it does not panic"), others)
    });
    others.and(long)?;
    scene::lamp_is_kept(stack)
}

fn one_after_the_other(stack: &Stack<'_>, figures: &Figures) -> Result<()> {
    for plugin in ["devices", "sunlight"] {
        step(&format!("docker stop of {plugin}"));
        let before = stack.plugin(plugin)?;
        let took = stack.stop(plugin)?;
        figures.at_most(
            format!("{plugin}: docker stop, alone"),
            took.as_secs_f64(),
            "s",
            10.0,
        );
        let gone = |plugin: &Plugin| plugin.state != "started";
        stack.until(plugin, gone, "gone")?;
        let from = stack.start(plugin)?;
        let took = stack.started_anew(plugin, before.generation, from)?;
        figures.at_most(
            format!("{plugin}: docker start, STARTED after"),
            took.as_secs_f64(),
            "s",
            30.0,
        );
    }

    step("docker kill of notifications");
    let before = stack.plugin("notifications")?;
    let container = stack.engine.container("notifications")?;
    stack.engine.docker(&["kill", &container])?;
    let from = stack.start("notifications")?;
    let took = stack.started_anew("notifications", before.generation, from)?;
    figures.at_most(
        "notifications: docker kill and start, STARTED after",
        took.as_secs_f64(),
        "s",
        10.0,
    );

    step("automation crashes");
    let before = stack.plugin("automation")?;
    let from = SystemTime::now();
    kill(stack.pid("automation")?)?;
    let took = stack.started_anew("automation", before.generation, from)?;
    figures.at_most(
        "automation: crash, STARTED after",
        took.as_secs_f64(),
        "s",
        10.0,
    );

    step("automation is cut off for 3 s");
    let before = stack.plugin("automation")?;
    let cut = Cut::begin(stack, "automation")?;
    cut.lasts(SHORT_CUT);
    let from = Instant::now();
    cut.end()?;
    stack.call(&["automation.history"])?;
    figures.at_most(
        "automation: cut off for 3 s, answers after",
        from.elapsed().as_secs_f64(),
        "s",
        30.0,
    );
    let after = stack.plugin("automation")?;
    ensure!(
        after.generation == before.generation && after.state == "started",
        "a short cut ended the run: {before:?}, then {after:?}"
    );
    Ok(())
}

/// A container without its network.
struct Cut<'a> {
    stack: &'a Stack<'a>,
    service: &'static str,
    begun: SystemTime,
    since: Instant,
}

impl<'a> Cut<'a> {
    fn begin(stack: &'a Stack<'a>, service: &'static str) -> Result<Self> {
        let (begun, since) = (SystemTime::now(), Instant::now());
        let cut = Self {
            stack,
            service,
            begun,
            since,
        };
        cut.network("disconnect", &[])?;
        Ok(cut)
    }

    fn network(&self, verb: &str, options: &[&str]) -> Result<()> {
        let engine = self.stack.engine;
        let (network, container) = (engine.network(), engine.container(self.service)?);
        let names = [network.as_str(), container.as_str()];
        engine.docker(&[&["network", verb], options, &names].concat())?;
        Ok(())
    }

    /// Waits until it has lasted so long.
    fn lasts(&self, time: Duration) {
        std::thread::sleep(time.saturating_sub(self.since.elapsed()));
    }

    fn end(self) -> Result<()> {
        self.network("connect", &["--alias", self.service])
    }
}

fn cut_off_for_long(stack: &Stack<'_>, figures: &Figures, plugin: &'static str) -> Result<()> {
    step(&format!("{plugin} is cut off for 60 s, beside the others"));
    let before = stack.plugin(plugin)?;
    let cut = Cut::begin(stack, plugin)?;
    let after = |moment: SystemTime| {
        let passed = moment.duration_since(cut.begun).unwrap_or_default();
        passed.as_secs_f64()
    };
    let degraded = |plugin: &Plugin| plugin.phase != "ready";
    let seen = stack.until(plugin, degraded, "degraded")?;
    figures.at_most(
        format!("{plugin}: cut off for 60 s, {} after", seen.phase),
        after(seen.since),
        "s",
        15.5,
    );
    let ended = |plugin: &Plugin| plugin.state != "started";
    let seen = stack.until(plugin, ended, "ended")?;
    figures.at_most(
        format!("{plugin}: cut off for 60 s, the run ended after"),
        after(seen.since),
        "s",
        30.5,
    );
    cut.lasts(LONG_CUT);
    let from = SystemTime::now();
    cut.end()?;
    let took = stack.started_anew(plugin, before.generation, from)?;
    figures.at_most(
        format!("{plugin}: cut off for 60 s, STARTED after its end"),
        took.as_secs_f64(),
        "s",
        35.0,
    );
    Ok(())
}

/// What happens to the core, while plugins go on running.
pub(crate) fn of_the_core(stack: &Stack<'_>, figures: &Figures) -> Result<()> {
    step("the core is stopped and started");
    let untouched = Untouched::note(stack)?;
    let took = stack.stop("core")?;
    figures.at_most("core: docker stop, alone", took.as_secs_f64(), "s", 15.0);
    let from = stack.start("core")?;
    came_back(stack, figures, "docker start", from)?;
    untouched.check(stack)?;

    step("docker kill of the core");
    let container = stack.engine.container("core")?;
    stack.engine.docker(&["kill", &container])?;
    let from = stack.start("core")?;
    came_back(stack, figures, "docker kill and start", from)?;
    untouched.check(stack)?;

    step("the core crashes");
    let from = SystemTime::now();
    kill(stack.pid("core")?)?;
    came_back(stack, figures, "crash", from)?;
    untouched.check(stack)
}

fn came_back(stack: &Stack<'_>, figures: &Figures, what: &str, from: SystemTime) -> Result<()> {
    for plugin in PLUGINS {
        let since = |found: &Plugin| {
            found.state == "started" && found.phase == "ready" && found.since >= from
        };
        stack.until(plugin, since, "STARTED again")?;
    }
    let took = stack.all_started(&PLUGINS, from)?;
    figures.at_most(
        format!("core: {what}, all STARTED after"),
        took.as_secs_f64(),
        "s",
        30.0,
    );
    scene::lamp_is_kept(stack)
}

/// When the containers of plugins were started: they go on running while the core is away.
struct Untouched(Vec<(&'static str, String)>);

impl Untouched {
    fn note(stack: &Stack<'_>) -> Result<Self> {
        let outlive = PLUGINS
            .into_iter()
            .filter(|plugin| *plugin != ENDS_WITHOUT_CORE);
        let started = |plugin| Ok((plugin, Self::started_at(stack, plugin)?));
        Ok(Self(outlive.map(started).collect::<Result<_>>()?))
    }

    fn started_at(stack: &Stack<'_>, plugin: &str) -> Result<String> {
        stack.engine.inspect(plugin, "{{.State.StartedAt}}")
    }

    fn check(&self, stack: &Stack<'_>) -> Result<()> {
        for (plugin, before) in &self.0 {
            let now = Self::started_at(stack, plugin)?;
            ensure!(now == *before, "{plugin} was started again at {now}");
        }
        Ok(())
    }
}

/// `devices` goes on from another image under the same name.
pub(crate) fn replaced(stack: &Stack<'_>, figures: &Figures) -> Result<()> {
    const MARK: &str = "core-runtime.replacement";
    let engine = stack.engine;
    let before = stack.plugin("devices")?;
    let container = engine.container("devices")?;
    let image = format!("{}/devices", engine.project());
    engine.docker(&["tag", &image, &format!("{image}:replaced")])?;
    let label = format!("LABEL {MARK}=yes");
    engine.docker(&["commit", "--change", &label, &container, &image])?;
    let from = SystemTime::now();
    engine.compose(&["up", "-d", "--no-deps", "devices"])?;
    let took = stack.started_anew("devices", before.generation, from)?;
    figures.at_most(
        "devices: replaced, STARTED after",
        took.as_secs_f64(),
        "s",
        30.0,
    );
    let mark = format!("{{{{index .Config.Labels {MARK:?}}}}}");
    ensure!(
        engine.inspect("devices", &mark)? == "yes",
        "devices runs from the image before"
    );
    scene::lamp_is_kept(stack)
}
