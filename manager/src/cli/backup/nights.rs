//! Backups of many nights in one folder: which stay, what goes with the others, and that whatever fails half way, those
//! that are left are whole.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicU64},
    thread,
};

use age::secrecy::ExposeSecret as _;
use indicatif::ProgressBar;
use tempfile::TempDir;

use super::{Identities, Incoming, Recipient, Taking, offline, verify_at};
use crate::backup::{
    Error, OBJECTS, SUFFIX,
    make::Ask,
    prune::{self, Alone, Plan},
    read::{self, Place},
    restore,
    tests::{NOW_MS, hub, measure, now},
};

/// A hub, and a folder with a backup of it for each of some nights.
struct Nights {
    hub: TempDir,
    folder: TempDir,
    recipients: Vec<Recipient>,
}

impl Nights {
    fn new(recipients: Vec<Recipient>) -> Self {
        Self { hub: hub(), folder: tempfile::tempdir().unwrap(), recipients }
    }

    fn of(nights: i64) -> Self {
        let all = Self::new(Vec::new());
        (1..=nights).for_each(|night| drop(all.back_up(night)));
        all
    }

    fn path(&self, night: i64) -> PathBuf {
        self.folder.path().join(format!("2026-11-{night:02}T031500Z{SUFFIX}"))
    }

    /// What a night brings: samples of the week that goes on, so that its file is another each time.
    fn back_up(&self, night: i64) -> PathBuf {
        let (_, samples) = restore::stores(self.hub.path(), now(NOW_MS)).unwrap();
        let at_ms = NOW_MS + night * 3_600_000;
        measure(&samples, 1, at_ms, 20);
        while samples.seal(at_ms + 1_800_000).unwrap().more {}
        drop(samples);
        self.back_up_as(self.path(night))
    }

    fn back_up_as(&self, file: PathBuf) -> PathBuf {
        self.try_back_up_as(file.clone()).unwrap();
        file
    }

    fn try_back_up_as(&self, file: PathBuf) -> Result<(), Error> {
        let have = read::objects(&self.folder.path().join(OBJECTS)).unwrap().into_keys().collect();
        let ask = Ask { telemetry: true, objects: true, have };
        let (to, incoming) = Incoming::pair();
        let data = self.hub.path().to_owned();
        let about = Arc::<AtomicU64>::default();
        let (recipients, bar) = (self.recipients.clone(), ProgressBar::hidden());
        let taking = Taking { file, is_folder: true, recipients, about: about.clone(), bar };
        let source = thread::spawn(move || offline(&data, &ask, to, &about));
        let taken = taking.run(incoming).map(drop);
        source.join().unwrap().unwrap();
        taken
    }

    fn plan(&self, newest: Option<&Path>, keep: usize) -> Result<Plan, Error> {
        prune::plan(self.folder.path(), newest, keep)
    }

    fn objects(&self) -> BTreeSet<PathBuf> {
        files(&self.folder.path().join(OBJECTS))
    }
}

fn files(folder: &Path) -> BTreeSet<PathBuf> {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_file()).collect()
}

fn verify(folder: &Path, file: &Path, keys: Option<&Identities>) -> Result<(), Error> {
    let place = Place { file: file.to_owned(), objects: folder.join(OBJECTS) };
    verify_at(&place, keys, &ProgressBar::hidden()).map(drop)
}

fn remove(path: &Path) -> io::Result<()> {
    fs::remove_file(path)
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for path in files(from) {
        fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}

#[test]
fn the_newest_stay_and_what_only_the_others_needed_goes() {
    let nights = Nights::of(3);
    let by_hand = nights.back_up_as(nights.folder.path().join(format!("before-upgrade{SUFFIX}")));
    let all = nights.objects();
    assert_eq!(all.len(), 5, "a week that is over, one as it was on three nights, and an artifact: {all:?}");
    // What the next one would bring about, while nothing is touched.
    let dry = nights.plan(None, 3).unwrap();
    assert_eq!((dry.removed, dry.kept), (vec![nights.path(1)], vec![nights.path(2), nights.path(3)]));
    assert_eq!(dry.objects.len(), 1, "the week as it was on the first night");
    assert_eq!(nights.objects(), all);

    let newest = nights.back_up(4);
    let plan = nights.plan(Some(&newest), 2).unwrap();
    assert_eq!(plan.removed, [nights.path(1), nights.path(2)]);
    assert_eq!(plan.kept, [nights.path(3), newest.clone()]);
    assert_eq!(plan.objects.len(), 2, "the third night's week is needed by another, too: {plan:?}");
    assert!(plan.bytes > 0);
    prune::carry_out(nights.folder.path(), &plan, &mut remove).unwrap();
    let left = read::list(nights.folder.path()).unwrap();
    assert_eq!(left, [nights.path(3), newest.clone(), by_hand], "whose name somebody gave is not counted");
    for file in &left {
        verify(nights.folder.path(), file, None).unwrap();
    }
    let plan = nights.plan(Some(&newest), 2).unwrap();
    assert!(plan.removed.is_empty() && plan.objects.is_empty(), "{plan:?}");
}

#[test]
fn a_failure_at_any_step_leaves_whole_backups_and_the_next_night_goes_on() {
    let nights = Nights::of(4);
    let whole = nights.plan(Some(&nights.path(4)), 2).unwrap();
    let steps = whole.removed.len() + whole.objects.len();
    assert!(steps >= 4, "{whole:?}");
    for step in 0..steps {
        let there = tempfile::tempdir().unwrap();
        let folder = there.path();
        copy(nights.folder.path(), folder);
        copy(&nights.folder.path().join(OBJECTS), &folder.join(OBJECTS));
        let newest = folder.join(nights.path(4).file_name().unwrap());
        let plan = prune::plan(folder, Some(&newest), 2).unwrap();
        let mut left = step;
        let failed = prune::carry_out(folder, &plan, &mut |path| {
            left = left.checked_sub(1).ok_or_else(|| io::Error::other("the power failed"))?;
            fs::remove_file(path)
        });
        assert!(matches!(failed, Err(Error::Io { .. })), "step {step}: {failed:?}");
        let named = read::list(folder).unwrap();
        assert!(plan.kept.iter().all(|kept| named.contains(kept)), "step {step}: {named:?}");
        for file in &named {
            verify(folder, file, None).unwrap_or_else(|error| panic!("step {step}: {error}"));
        }
        // One night later what was left over goes, too.
        let again = prune::plan(folder, Some(&newest), 1).unwrap();
        prune::carry_out(folder, &again, &mut remove).unwrap();
        assert_eq!(read::list(folder).unwrap(), std::slice::from_ref(&newest));
        verify(folder, &newest, None).unwrap();
        assert_eq!(files(&folder.join(OBJECTS)).len(), 3, "two weeks and an artifact");
    }
}

#[test]
fn what_a_killed_backup_left_goes_and_a_damaged_object_is_written_anew() {
    let nights = Nights::of(2);
    let folder = nights.folder.path();
    let left = folder.join(".verify-Ab12/telemetry");
    fs::create_dir_all(&left).unwrap();
    fs::write(left.join("2026-W48.redb"), "half").unwrap();
    let partial = folder.join(format!("2026-11-01T031500Z{SUFFIX}.partial"));
    fs::write(&partial, "half").unwrap();
    prune::clear(folder).unwrap();
    assert!(!folder.join(".verify-Ab12").exists() && !partial.exists());
    assert_eq!(read::list(folder).unwrap().len(), 2);
    // The week that is over: it is not asked for again, whatever it has become.
    let objects = files(&folder.join(OBJECTS));
    for object in &objects {
        let bytes = fs::read(object).unwrap();
        fs::write(object, &bytes[..bytes.len() - 1]).unwrap();
    }
    let (mut damaged, mut told) = (0, String::new());
    let taken = (3..9).find(|night| {
        let failed = nights.try_back_up_as(nights.path(*night)).err();
        damaged += u32::from(failed.is_some());
        told = failed.as_ref().map_or_else(|| told.clone(), ToString::to_string);
        failed.is_none()
    });
    assert!(damaged > 0 && told.contains(".damaged now"), "{told}");
    verify(folder, &nights.path(taken.expect("objects are written anew")), None).unwrap();
}

#[test]
fn what_is_shared_is_for_those_it_was_made_for() {
    let nights = Nights::new(Vec::new());
    let folder = nights.folder.path();
    let [one, two] = [1, 2].map(|_| age::x25519::Identity::generate().to_public().to_string());
    let named =
        |names: &[&String]| names.iter().map(|name| name.parse().unwrap()).collect::<Vec<Recipient>>();
    prune::hold_to(folder, &named(&[&one, &two])).unwrap();
    prune::hold_to(folder, &named(&[&two, &one])).unwrap();
    for other in [named(&[]), named(&[&one])] {
        let refused = prune::hold_to(folder, &other).unwrap_err().to_string();
        assert!(refused.contains(&one) && refused.contains("another folder"), "{refused}");
    }
}

#[test]
fn the_one_just_written_stays_though_a_clock_was_set_back() {
    let nights = Nights::of(2);
    let newest = nights.back_up_as(nights.folder.path().join(format!("1999-01-01T000000Z{SUFFIX}")));
    let plan = nights.plan(Some(&newest), 1).unwrap();
    assert_eq!((plan.kept, plan.removed.len()), (vec![newest], 2));
}

#[test]
fn nothing_goes_while_a_backup_that_stays_cannot_be_read() {
    let nights = Nights::of(3);
    let bytes = fs::read(nights.path(2)).unwrap();
    fs::write(nights.path(2), &bytes[..bytes.len() / 2]).unwrap();
    let refused = nights.plan(Some(&nights.path(3)), 2);
    assert!(matches!(refused, Err(Error::Broken { .. } | Error::Damaged { .. })), "{refused:?}");
    // One that goes anyhow may be as it likes.
    assert_eq!(nights.plan(Some(&nights.path(3)), 1).unwrap().removed.len(), 2);
}

#[test]
fn encrypted_backups_are_removed_without_their_key_by_the_list_that_lies_beside_them() {
    let key = age::x25519::Identity::generate();
    let recipient: Recipient = key.to_public().to_string().parse().unwrap();
    let nights = Nights::new(vec![recipient]);
    (1..=3).for_each(|night| drop(nights.back_up(night)));
    let folder = nights.folder.path();
    // What a backup that was killed left.
    fs::write(folder.join(OBJECTS).join("0123.partial"), "half").unwrap();
    let newest = nights.path(3);
    let plan = nights.plan(Some(&newest), 2).unwrap();
    assert_eq!(plan.removed, [nights.path(1)]);
    assert_eq!(plan.objects.len(), 3, "a week, a list and what was half: {plan:?}");
    prune::carry_out(folder, &plan, &mut remove).unwrap();
    let file = folder.join("key.txt");
    fs::write(&file, key.to_string().expose_secret()).unwrap();
    let keys = Identities::read(&file).unwrap();
    for night in [2, 3] {
        verify(folder, &nights.path(night), Some(&keys)).unwrap();
    }
    let list = folder.join(OBJECTS).join(format!("2026-11-03T031500Z{SUFFIX}.needs"));
    fs::remove_file(list).unwrap();
    assert!(matches!(nights.plan(Some(&newest), 1), Err(Error::NeedsUnknown(_))));
}

#[test]
fn one_backup_at_a_time_is_written_to_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let alone = Alone::new(folder.path()).unwrap();
    assert!(alone.is_some());
    assert!(matches!(Alone::new(folder.path()), Err(Error::Busy(_))));
    drop(alone);
    Alone::new(folder.path()).unwrap();
}
