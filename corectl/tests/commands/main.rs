//! The real binary against a core that is played by the test: every command in its forms, every exit
//! code, every way to find the core.

mod connecting;
mod data;
mod fake;
mod permissions;
mod plugins;
mod program;
mod services;
mod streams;
