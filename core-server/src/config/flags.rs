//! Settings from the command line.

use super::error::Origin;
use super::tree::{Data, Entry, Node, Table};

/// Flags that set settings; they override file and environment.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Flags {
    /// Configuration file [default: core.toml, if there is one]
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<String>,

    /// Directory whose subdirectories hold a plugin.toml each [default: plugins]
    #[arg(long, global = true, value_name = "DIR")]
    pub plugins_dir: Option<String>,

    /// Directory for the data of the core and its plugins [default: data]
    #[arg(long, global = true, value_name = "DIR")]
    pub data_dir: Option<String>,

    /// Database [default: runtime.db in the data directory]
    #[arg(long, global = true, value_name = "FILE", conflicts_with = "ephemeral")]
    pub db: Option<String>,

    /// TCP address to listen on; may be given several times, and replaces those of the file
    #[arg(long, global = true, value_name = "IP:PORT")]
    pub listen: Vec<String>,

    /// Allow plaintext from other machines: tokens and data can be read on the way
    #[arg(long, global = true)]
    pub insecure_plaintext: bool,

    /// Keep data in memory only
    #[arg(long, global = true)]
    pub ephemeral: bool,

    /// Log filter: a level, or levels by target
    #[arg(long, global = true, value_name = "FILTER")]
    pub log: Option<String>,
}

impl Flags {
    /// The settings that they set, unchecked.
    pub(super) fn layer(&self) -> Table {
        let mut top = Table::new();
        let mut set = |path: &[&str], flag, data| insert(&mut top, path, data, flag);
        let text = |text: &String| Data::Unread(text.clone());
        if let Some(directory) = &self.plugins_dir {
            set(&["plugins_dir"], "--plugins-dir", text(directory));
        }
        if let Some(directory) = &self.data_dir {
            set(&["data_dir"], "--data-dir", text(directory));
        }
        if let Some(path) = &self.db {
            set(&["storage", "path"], "--db", text(path));
        }
        if self.ephemeral {
            let memory = Data::Unread("memory".to_owned());
            set(&["storage", "adapter"], "--ephemeral", memory);
        }
        if !self.listen.is_empty() {
            let address = |address| Node {
                data: text(address),
                origin: Origin::Flag("--listen"),
            };
            let addresses = Data::List(self.listen.iter().map(address).collect());
            set(&["listen", "tcp"], "--listen", addresses);
        }
        if self.insecure_plaintext {
            let path = ["listen", "insecure_plaintext"];
            set(&path, "--insecure-plaintext", Data::Switch(true));
        }
        if let Some(filter) = &self.log {
            set(&["log", "filter"], "--log", text(filter));
        }
        top
    }
}

fn insert(table: &mut Table, path: &[&str], data: Data, flag: &'static str) {
    let [section @ .., key] = path else { return };
    let mut table = table;
    for name in section {
        let empty = || Entry::new(Data::Table(Table::new()), Origin::Flag(flag));
        let entry = table.entry((*name).to_owned()).or_insert_with(empty);
        let Data::Table(below) = &mut entry.node.data else {
            return;
        };
        table = below;
    }
    table.insert((*key).to_owned(), Entry::new(data, Origin::Flag(flag)));
}
