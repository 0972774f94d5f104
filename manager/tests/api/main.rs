//! The HTTP API and the command line against a real hub: gate, router, stores on disk, sockets.

mod cli;
mod given;
mod http;
mod import;
mod stream;
