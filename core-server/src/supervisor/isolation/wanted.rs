//! What a plugin is to be kept to: `[limits]` and `[sandbox]` of its manifest, typed.

use std::path::PathBuf;

/// A resource that can be limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Resource {
    /// Memory of the plugin's processes together, in bytes.
    Memory,
    /// Processes and threads together.
    Pids,
    /// Share of the processor while others want it too; 100 is everybody's.
    CpuWeight,
    /// Open files of one process.
    OpenFiles,
}

impl Resource {
    /// All of them, in the order in which they are shown.
    pub const ALL: [Self; 4] = [Self::Memory, Self::Pids, Self::CpuWeight, Self::OpenFiles];

    /// Its key in `[limits]`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Pids => "pids",
            Self::CpuWeight => "cpu_weight",
            Self::OpenFiles => "open_files",
        }
    }

    /// The resource of this key.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|resource| resource.as_str() == word)
    }
}

/// `[limits]` of one plugin. Absent: not limited.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResourceLimits {
    /// Bytes.
    pub memory: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u64>,
    /// As of cgroup v2: 1 to 10,000.
    pub cpu_weight: Option<u64>,
    /// Descriptors of one process.
    pub open_files: Option<u64>,
    /// Of these, those without which the plugin must not run.
    pub required: Vec<Resource>,
}

impl ResourceLimits {
    /// The limit of a resource.
    #[must_use]
    pub fn get(&self, resource: Resource) -> Option<u64> {
        match resource {
            Resource::Memory => self.memory,
            Resource::Pids => self.pids,
            Resource::CpuWeight => self.cpu_weight,
            Resource::OpenFiles => self.open_files,
        }
    }
}

/// `[sandbox]` of one plugin.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sandbox {
    /// Name or number of the user it runs as; absent: the core's own.
    pub user: Option<String>,
    /// Name or number of its group; absent: the user's.
    pub group: Option<String>,
    /// Files: kept to what it needs to run, its data directory, and the paths below.
    pub landlock: bool,
    /// Paths it may read and run besides.
    pub read: Vec<PathBuf>,
    /// Paths it may read and write besides.
    pub write: Vec<PathBuf>,
    /// All of it, or the plugin must not run.
    pub required: bool,
}
