//! Reads the machine. All input of the plugin is here; what it means is in `parse` and `sample`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::parse;
use crate::sample::{Failure, Sample, Space, Temperature};

/// Where the kernel shows what it knows. Tests have a root of their own.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    root: PathBuf,
}

impl Machine {
    pub(crate) fn this() -> Self {
        Self::at("/")
    }

    pub(crate) fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Measures everything. A source that fails takes nothing away from the others. Blocks: a disk on
    /// a network may take its time.
    pub(crate) fn measure(&self, disk: &Path) -> Sample {
        let mut failed = Vec::new();
        Sample {
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            load: note(&mut failed, "load", self.read("proc/loadavg", parse::load)),
            memory: note(
                &mut failed,
                "memory",
                self.read("proc/meminfo", parse::memory),
            ),
            disk: note(&mut failed, "disk", space_on(disk)),
            uptime_seconds: note(
                &mut failed,
                "uptime",
                self.read("proc/uptime", parse::uptime_seconds),
            ),
            temperatures: self.temperatures(),
            warnings: Vec::new(),
            failed,
        }
    }

    fn read<T>(&self, path: &str, parse: fn(&str) -> Result<T, String>) -> Result<T, String> {
        let text = fs::read_to_string(self.root.join(path))
            .map_err(|error| format!("/{path}: {error}"))?;
        parse(&text).map_err(|error| format!("/{path}: {error}"))
    }

    /// Hottest first. Sensors come and go, and one that sleeps answers with an error: what cannot be
    /// read is left out, and is no failure.
    fn temperatures(&self) -> Vec<Temperature> {
        let mut found = Vec::new();
        for zone in folders(&self.root.join("sys/class/thermal"), "thermal_zone") {
            found.extend(temperature(&zone.join("type"), &zone.join("temp")));
        }
        for chip in folders(&self.root.join("sys/class/hwmon"), "hwmon") {
            for input in folders(&chip, "temp")
                .into_iter()
                .filter(|path| path.to_string_lossy().ends_with("_input"))
            {
                found.extend(temperature(&chip.join("name"), &input));
            }
        }
        found.sort_by(|one, other| other.celsius.total_cmp(&one.celsius));
        found
    }
}

fn note<T>(failed: &mut Vec<Failure>, source: &str, result: Result<T, String>) -> Option<T> {
    result
        .map_err(|error| {
            failed.push(Failure {
                source: source.to_owned(),
                error,
            })
        })
        .ok()
}

fn space_on(disk: &Path) -> Result<Space, String> {
    let figures = rustix::fs::statvfs(disk)
        .map_err(|error| format!("{}: {}", disk.display(), io::Error::from(error)))?;
    Ok(Space {
        total_bytes: figures.f_blocks.saturating_mul(figures.f_frsize),
        // What anyone but root can still fill.
        available_bytes: figures.f_bavail.saturating_mul(figures.f_frsize),
    })
}

/// What is in a folder under a name that begins so, in order of name; nothing if there is no folder.
fn folders(folder: &Path, begin: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut found: Vec<_> = entries
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(begin))
        .map(|entry| entry.path())
        .collect();
    found.sort();
    found
}

fn temperature(name: &Path, value: &Path) -> Option<Temperature> {
    let celsius = parse::celsius(&fs::read_to_string(value).ok()?).ok()?;
    let sensor = fs::read_to_string(name).ok()?.trim().to_owned();
    Some(Temperature { sensor, celsius })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(files: &[(&str, &str)]) -> (tempfile::TempDir, Machine) {
        let root = tempfile::tempdir().expect("a directory");
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
            fs::write(path, text).expect("a file");
        }
        let machine = Machine::at(root.path());
        (root, machine)
    }

    #[test]
    fn this_machine_can_be_measured() {
        let sample = Machine::this().measure(Path::new("/"));
        assert_eq!(sample.failed, []);
        assert!(sample.cpus > 0 && sample.load.is_some() && sample.uptime_seconds > Some(0.0));
        for space in [sample.memory, sample.disk] {
            let space = space.expect("measured");
            assert!(space.total_bytes > 0 && space.available_bytes <= space.total_bytes);
        }
    }

    #[test]
    fn a_source_that_fails_takes_nothing_from_the_others() {
        let (_root, machine) =
            machine(&[("proc/loadavg", "1 2 3"), ("proc/meminfo", "no such thing")]);
        let sample = machine.measure(Path::new("/no/such/disk"));
        assert!(sample.load.is_some());
        let failed: Vec<_> = sample
            .failed
            .iter()
            .map(|failure| failure.source.as_str())
            .collect();
        assert_eq!(failed, ["memory", "disk", "uptime"]);
        assert_eq!(sample.failed[0].error, "/proc/meminfo: no line MemTotal");
    }

    #[test]
    fn temperatures_come_from_both_places_hottest_first() {
        let (_root, machine) = machine(&[
            ("sys/class/thermal/thermal_zone0/type", "acpitz\n"),
            ("sys/class/thermal/thermal_zone0/temp", "41000\n"),
            ("sys/class/thermal/cooling_device0/type", "fan\n"),
            ("sys/class/hwmon/hwmon0/name", "coretemp\n"),
            ("sys/class/hwmon/hwmon0/temp1_input", "63500\n"),
            ("sys/class/hwmon/hwmon0/temp1_max", "100000\n"),
            ("sys/class/hwmon/hwmon0/temp2_input", "asleep\n"),
        ]);
        let found: Vec<_> = machine
            .temperatures()
            .into_iter()
            .map(|temperature| (temperature.sensor, temperature.celsius))
            .collect();
        assert_eq!(
            found,
            [("coretemp".to_owned(), 63.5), ("acpitz".to_owned(), 41.0)]
        );
    }
}
