//! The ring on disk: compressed blocks of lines in a few files, the oldest of which goes when there are too many.
//!
//! Owns the folder `logs/` of the data folder. Nothing here is precious: a block is written without waiting for the
//! disk, and after a crash the lines that were only in memory are gone. Numbers never come again, so that whoever reads
//! on from one misses nothing that is there.

use std::{
    collections::VecDeque,
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use super::line::{Line, Page, Query};

/// Name of the folder in the data folder.
pub(super) const FOLDER: &str = "logs";
/// Most bytes on disk: some days of an ordinary node, since text shrinks to a tenth.
pub const RING_BYTES: u64 = 10 * 1024 * 1024;
/// A file that is larger is closed, and the next begun: what goes at once when the ring is full.
const SEGMENT_BYTES: u64 = 1024 * 1024;
/// Text that makes a block, in bytes: enough for the compression, little enough for the memory.
pub(super) const BLOCK_BYTES: usize = 64 * 1024;
/// Most bytes of one block's text that are read: what is larger was not written here.
const BLOCK_MOST: usize = 4 * BLOCK_BYTES;
/// Numbers that each start leaves out: more than lines may have been lost with the one before.
const LEAP: u64 = 1 << 20;
/// Ends the names of files.
const SUFFIX: &str = ".lines";
/// Begins a block.
const MAGIC: [u8; 4] = *b"FLL1";
/// What stands before a block's text: magic, two lengths, two numbers, two times.
const HEAD_BYTES: usize = 4 + 2 * 4 + 4 * 8;
/// Compression that costs a small board little.
const LEVEL: i32 = 3;

/// What stands before a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Head {
    packed: u32,
    plain: u32,
    first: u64,
    last: u64,
    oldest_ms: i64,
    newest_ms: i64,
}

/// The ring.
#[derive(Debug)]
pub(super) struct Ring {
    folder: PathBuf,
    // First numbers and sizes, oldest first.
    segments: VecDeque<(u64, u64)>,
    // Whether the newest file may be appended to.
    open: bool,
    waiting: Vec<Line>,
    waiting_bytes: usize,
    next: u64,
}

impl Ring {
    /// Opens the folder, or makes it.
    pub(super) fn open(data: &Path) -> io::Result<Self> {
        let folder = data.join(FOLDER);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        let mut segments = Vec::new();
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            let name = entry.file_name();
            let first = name.to_str().and_then(|name| name.strip_suffix(SUFFIX)?.parse::<u64>().ok());
            if let Some(first) = first {
                segments.push((first, entry.metadata()?.len()));
            }
        }
        segments.sort_unstable();
        let mut ring = Self {
            folder,
            segments: segments.into(),
            open: false,
            waiting: Vec::new(),
            waiting_bytes: 0,
            next: LEAP,
        };
        let mut last = 0;
        for (first, _) in ring.segments.iter().rev() {
            last = last.max(*first);
            let mut blocks = Blocks::of(&ring.path(*first))?;
            while let Some(head) = blocks.next()? {
                last = last.max(head.last);
                blocks.skip()?;
            }
            if last > *first {
                break;
            }
        }
        ring.next = (last / LEAP + 1) * LEAP;
        Ok(ring)
    }

    fn path(&self, first: u64) -> PathBuf {
        self.folder.join(format!("{first:020}{SUFFIX}"))
    }

    /// The number of the latest line.
    pub(super) fn latest(&self) -> u64 {
        self.next - 1
    }

    /// Takes a line; says whether enough wait for a block.
    pub(super) fn push(&mut self, mut line: Line) -> bool {
        line.n = self.next;
        self.next += 1;
        self.waiting_bytes += line.size();
        self.waiting.push(line);
        self.waiting_bytes >= BLOCK_BYTES
    }

    /// Writes what waits. It is given up when that fails: a full disk must not fill the memory.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        let lines = std::mem::take(&mut self.waiting);
        self.waiting_bytes = 0;
        let (Some(first), Some(last)) = (lines.first(), lines.last()) else { return Ok(()) };
        let (first, last) = (first.n, last.n);
        let mut plain = Vec::new();
        for line in &lines {
            serde_json::to_writer(&mut plain, line)?;
            plain.push(b'\n');
        }
        let packed = zstd::bulk::compress(&plain, LEVEL)?;
        let too_long = |_| io::Error::other("a block of lines is too long");
        let times = || lines.iter().map(|line| line.time_ms);
        let head = Head {
            packed: u32::try_from(packed.len()).map_err(too_long)?,
            plain: u32::try_from(plain.len()).map_err(too_long)?,
            first,
            last,
            oldest_ms: times().min().unwrap_or_default(),
            newest_ms: times().max().unwrap_or_default(),
        };
        let written = self.append(&head, &packed);
        // Half a block may lie there: nothing is written behind it.
        self.open &= written.is_ok();
        written
    }

    fn append(&mut self, head: &Head, packed: &[u8]) -> io::Result<()> {
        let bytes = [&head.encode()[..], packed].concat();
        let size = bytes.len() as u64;
        if !self.open || self.segments.back().is_none_or(|(_, held)| held + size > SEGMENT_BYTES) {
            self.segments.push_back((head.first, 0));
            self.open = true;
        }
        self.make_room(size)?;
        let Some((first, held)) = self.segments.back_mut() else { return Ok(()) };
        let path = self.folder.join(format!("{first:020}{SUFFIX}"));
        let mut file = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
        file.write_all(&bytes)?;
        *held += size;
        Ok(())
    }

    fn make_room(&mut self, size: u64) -> io::Result<()> {
        while self.segments.len() > 1
            && self.segments.iter().map(|(_, held)| held).sum::<u64>() + size > RING_BYTES
        {
            let Some((oldest, _)) = self.segments.front().copied() else { break };
            match fs::remove_file(self.path(oldest)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => drop(self.segments.pop_front()),
            }
        }
        Ok(())
    }

    /// What is asked for, as much as fits into `bytes` of JSON lines.
    pub(super) fn read(&self, query: &Query, bytes: usize) -> io::Result<Page> {
        let mut query = query.clone();
        if let Some(last) = query.last.take() {
            let mut numbers = VecDeque::new();
            self.visit(&query, &mut |line| {
                if numbers.len() == last as usize {
                    numbers.pop_front();
                }
                numbers.push_back(line.n);
                true
            })?;
            if let Some(first) = numbers.front() {
                query.after = Some(first - 1);
            }
        }
        let mut page = Page { next: self.latest(), ..Page::default() };
        let mut room = bytes;
        self.visit(&query, &mut |line| {
            let size = serde_json::to_string(&line).map_or(usize::MAX, |json| json.len() + 1);
            page.more = size > room && !page.lines.is_empty();
            if !page.more {
                room = room.saturating_sub(size);
                page.lines.push(line);
            }
            !page.more
        })?;
        if let Some(last) = page.lines.last().filter(|_| page.more) {
            page.next = last.n;
        }
        Ok(page)
    }

    /// Shows every line that is asked for, oldest first, until `take` says that it has enough.
    fn visit(&self, query: &Query, take: &mut dyn FnMut(Line) -> bool) -> io::Result<()> {
        let after = query.after.unwrap_or(0);
        let since = query.since_ms.unwrap_or(i64::MIN);
        for (at, (first, _)) in self.segments.iter().enumerate() {
            // All of it lies before the first of the next one.
            if self.segments.get(at + 1).is_some_and(|(next, _)| *next <= after) {
                continue;
            }
            let mut blocks = Blocks::of(&self.path(*first))?;
            while let Some(head) = blocks.next()? {
                if head.last <= after || head.newest_ms < since {
                    blocks.skip()?;
                    continue;
                }
                for line in blocks.lines()? {
                    if query.takes(&line) && !take(line) {
                        return Ok(());
                    }
                }
            }
        }
        for line in &self.waiting {
            if query.takes(line) && !take(line.clone()) {
                return Ok(());
            }
        }
        Ok(())
    }
}

impl Head {
    fn encode(&self) -> [u8; HEAD_BYTES] {
        let mut head = [0; HEAD_BYTES];
        head[..4].copy_from_slice(&MAGIC);
        head[4..8].copy_from_slice(&self.packed.to_le_bytes());
        head[8..12].copy_from_slice(&self.plain.to_le_bytes());
        head[12..20].copy_from_slice(&self.first.to_le_bytes());
        head[20..28].copy_from_slice(&self.last.to_le_bytes());
        head[28..36].copy_from_slice(&self.oldest_ms.to_le_bytes());
        head[36..].copy_from_slice(&self.newest_ms.to_le_bytes());
        head
    }

    fn decode(head: &[u8; HEAD_BYTES]) -> Option<Self> {
        let short = |at: usize| head[at..at + 4].try_into().map(u32::from_le_bytes).ok();
        let long = |at: usize| head[at..at + 8].try_into().map(u64::from_le_bytes).ok();
        let decoded = Self {
            packed: short(4)?,
            plain: short(8)?,
            first: long(12)?,
            last: long(20)?,
            oldest_ms: long(28)?.cast_signed(),
            newest_ms: long(36)?.cast_signed(),
        };
        let fits = decoded.plain as usize <= BLOCK_MOST && decoded.packed as usize <= BLOCK_MOST;
        (head[..4] == MAGIC && fits && decoded.first <= decoded.last).then_some(decoded)
    }
}

/// The blocks of one file. What is damaged ends it: the power may have gone in the middle of the last one.
struct Blocks {
    // Absent: the file is gone.
    file: Option<File>,
    head: Option<Head>,
}

impl Blocks {
    fn of(path: &Path) -> io::Result<Self> {
        match File::open(path) {
            Ok(file) => Ok(Self { file: Some(file), head: None }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self { file: None, head: None }),
            Err(error) => Err(error),
        }
    }

    /// The next block; its text has to be read or skipped.
    fn next(&mut self) -> io::Result<Option<Head>> {
        let Some(file) = &mut self.file else { return Ok(None) };
        let mut head = [0; HEAD_BYTES];
        match file.read_exact(&mut head) {
            Ok(()) => self.head = Head::decode(&head),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => self.head = None,
            Err(error) => return Err(error),
        }
        if self.head.is_none() {
            self.file = None;
        }
        Ok(self.head)
    }

    fn skip(&mut self) -> io::Result<()> {
        if let (Some(file), Some(head)) = (&mut self.file, self.head) {
            file.seek(SeekFrom::Current(i64::from(head.packed)))?;
        }
        Ok(())
    }

    fn lines(&mut self) -> io::Result<Vec<Line>> {
        let (Some(file), Some(head)) = (&mut self.file, self.head) else { return Ok(Vec::new()) };
        let mut packed = vec![0; head.packed as usize];
        let read = file.read_exact(&mut packed);
        let plain = read.and_then(|()| zstd::bulk::decompress(&packed, head.plain as usize));
        match plain {
            Ok(plain) => {
                let lines = plain.split(|byte| *byte == b'\n');
                Ok(lines.filter_map(|line| serde_json::from_slice(line).ok()).collect())
            }
            Err(_) => {
                self.file = None;
                Ok(Vec::new())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logs::line::{ERROR, INFO};

    fn line(at: i64, message: &str) -> Line {
        Line::new(at, "fleet-agent", if message.contains("bad") { ERROR } else { INFO }, message)
    }

    fn on_disk(ring: &Ring) -> u64 {
        fs::read_dir(&ring.folder).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum()
    }

    fn texts(page: &Page) -> Vec<&str> {
        page.lines.iter().map(|line| line.message.as_str()).collect()
    }

    /// A text that does not shrink.
    fn noise(n: u32) -> String {
        use sha2::{Digest as _, Sha256};
        (0..40_u32)
            .flat_map(|part| Sha256::digest([n.to_le_bytes(), part.to_le_bytes()].concat()))
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }

    #[test]
    fn what_is_written_is_read_from_disk_and_from_memory() {
        let data = tempfile::tempdir().unwrap();
        let mut ring = Ring::open(data.path()).unwrap();
        for n in 0..10 {
            ring.push(line(n, &format!("{} {n}", if n % 3 == 0 { "bad" } else { "good" })));
            if n == 4 {
                ring.flush().unwrap();
            }
        }
        let all = ring.read(&Query::default(), usize::MAX).unwrap();
        assert_eq!((all.lines.len(), all.next, all.more), (10, ring.latest(), false));
        assert!(all.lines.windows(2).all(|pair| pair[0].n + 1 == pair[1].n));
        let query = Query { last: Some(2), priority: Some(ERROR), ..Query::default() };
        assert_eq!(texts(&ring.read(&query, usize::MAX).unwrap()), ["bad 6", "bad 9"]);
        let query = Query { since_ms: Some(8), ..Query::default() };
        assert_eq!(texts(&ring.read(&query, usize::MAX).unwrap()), ["good 8", "bad 9"]);
        let query = Query { after: Some(ring.latest()), ..Query::default() };
        assert_eq!(ring.read(&query, usize::MAX).unwrap(), Page { next: ring.latest(), ..Page::default() });
    }

    #[test]
    fn pages_together_are_all_of_it_and_each_fits() {
        let data = tempfile::tempdir().unwrap();
        let mut ring = Ring::open(data.path()).unwrap();
        for n in 0..500 {
            if ring.push(line(n, &format!("line {n} {}", "x".repeat(usize::try_from(n).unwrap() % 400)))) {
                ring.flush().unwrap();
            }
        }
        let mut query = Query { last: Some(300), ..Query::default() };
        let mut seen = Vec::new();
        loop {
            let page = ring.read(&query, 4_000).unwrap();
            let size: usize =
                page.lines.iter().map(|line| serde_json::to_string(line).unwrap().len() + 1).sum();
            assert!(size <= 4_000, "{size}");
            seen.extend(page.lines.iter().map(|line| line.time_ms));
            query = Query { after: Some(page.next), ..Query::default() };
            if !page.more {
                break;
            }
        }
        assert_eq!(seen, (200..500).collect::<Vec<_>>());
    }

    #[test]
    fn a_start_goes_on_behind_every_number_that_was_ever_given() {
        let data = tempfile::tempdir().unwrap();
        let mut ring = Ring::open(data.path()).unwrap();
        ring.push(line(1, "kept"));
        ring.flush().unwrap();
        ring.push(line(2, "lost with the power"));
        let before = ring.latest();
        drop(ring);
        let mut ring = Ring::open(data.path()).unwrap();
        assert!(ring.latest() >= before);
        ring.push(line(3, "new"));
        let page = ring.read(&Query { after: Some(before), ..Query::default() }, usize::MAX).unwrap();
        assert_eq!(texts(&page), ["new"]);
        assert_eq!(texts(&ring.read(&Query::default(), usize::MAX).unwrap()), ["kept", "new"]);
    }

    #[test]
    fn the_ring_stays_within_its_bytes_and_the_newest_stay() {
        let data = tempfile::tempdir().unwrap();
        let mut ring = Ring::open(data.path()).unwrap();
        let mut n = 0;
        while n < 8_000 {
            n += 1;
            if ring.push(line(i64::from(n), &noise(n))) {
                ring.flush().unwrap();
                assert!(on_disk(&ring) <= RING_BYTES);
            }
        }
        ring.flush().unwrap();
        assert!(on_disk(&ring) > RING_BYTES - 2 * SEGMENT_BYTES);
        let last = ring.read(&Query { last: Some(3), ..Query::default() }, usize::MAX).unwrap();
        assert_eq!(last.lines.iter().map(|line| line.time_ms).collect::<Vec<_>>(), [7_998, 7_999, 8_000]);
        let oldest = ring.read(&Query::default(), 1).unwrap().lines[0].time_ms;
        assert!(oldest > 1, "nothing went");
    }

    #[test]
    fn damage_costs_what_is_damaged_and_nothing_else() {
        let data = tempfile::tempdir().unwrap();
        let mut ring = Ring::open(data.path()).unwrap();
        for n in 1..=3 {
            ring.push(line(n, &format!("line {n}")));
            ring.flush().unwrap();
        }
        let path = ring.path(ring.segments[0].0);
        let whole = fs::read(&path).unwrap();
        // The power goes in the middle of the last block.
        for cut in [whole.len() - 1, whole.len() - whole.len() / 3 - 3, HEAD_BYTES - 1, 0] {
            fs::write(&path, &whole[..cut]).unwrap();
            let mut again = Ring::open(data.path()).unwrap();
            again.push(line(9, "after"));
            again.flush().unwrap();
            let page = again.read(&Query::default(), usize::MAX).unwrap();
            assert_eq!(page.lines.last().unwrap().message, "after", "{cut} bytes were left");
            assert!(page.lines.len() <= 3, "{:?}", texts(&page));
            fs::remove_file(again.path(again.segments.back().unwrap().0)).unwrap();
        }
        let mut bent = whole;
        bent[HEAD_BYTES + 5] ^= 0xff;
        fs::write(&path, &bent).unwrap();
        let ring = Ring::open(data.path()).unwrap();
        assert!(ring.read(&Query::default(), usize::MAX).is_ok());
    }
}
