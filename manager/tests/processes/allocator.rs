//! What `src/allocator.c` sets is set in the program that is shipped.

use std::fs;

use crate::given::Hub;

/// glibc maps each arena but the first at a multiple of this, 64-bit machines.
const ARENA_BYTES: u64 = 64 * 1024 * 1024;

#[tokio::test(flavor = "multi_thread")]
async fn the_threads_of_the_hub_share_an_arena_for_each_processor_and_one_gives_memory_back() {
    let folder = tempfile::tempdir().unwrap();
    let mut hub = Hub::start(&folder.path().join("hub")).await;
    let process = format!("/proc/{}", hub.pid().as_raw_pid());
    let maps = fs::read_to_string(format!("{process}/maps")).unwrap();
    let arenas = maps.lines().filter(|line| {
        // `from-to rw-p offset device inode`, and a name unless it is memory alone.
        let words: Vec<_> = line.split_whitespace().collect();
        let from = words[0].split('-').next().and_then(|from| u64::from_str_radix(from, 16).ok());
        words.len() == 5 && words[1] == "rw-p" && from.is_some_and(|from| from % ARENA_BYTES == 0)
    });
    let arenas = arenas.count();
    // `Cpus_allowed:	ff,ffffffff`
    let status = fs::read_to_string(format!("{process}/status")).unwrap();
    let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed:")).unwrap();
    let processors: u32 = allowed.chars().filter_map(|digit| digit.to_digit(16)).map(u32::count_ones).sum();
    let most = processors.max(2) as usize;
    assert!(arenas < most, "{arenas} and the first one on {most} processors");
    // A thread may end before its name is read.
    let name = |task: fs::DirEntry| fs::read_to_string(task.path().join("comm")).ok();
    let tasks = fs::read_dir(format!("{process}/task")).unwrap();
    let names: Vec<_> = tasks.filter_map(|task| name(task.unwrap())).collect();
    assert!(names.iter().any(|name| name.trim() == "give-back"), "{names:?}");
    hub.end().await;
}
