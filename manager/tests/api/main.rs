//! The HTTP API and the command line against a real hub: gate, router, stores on disk, sockets.
#![expect(clippy::unwrap_used, reason = "functions of a test may fail it")]

mod alerts;
mod cli;
mod command_cli;
mod commands;
mod config;
mod console;
mod feed;
mod given;
mod http;
mod import;
mod login;
mod mirror;
mod openapi;
mod operators;
mod prom;
mod releases;
mod rights;
mod stream;
mod zones;
