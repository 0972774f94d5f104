//! What holds whatever nodes do: random fleets, terms and accidents, looked at after every second.

use std::collections::BTreeSet;

use fleet_schemas::update::State as Said;
use proptest::prelude::*;

use super::{
    Act, Approval, MaxUnavailable, OnFailure, Size, Stage, Stand, State, Terms,
    play::{Manner, Play, digest, terms},
    wave,
};

const NODES: usize = 16;
const DEADLINE_S: i64 = 900;

/// Something that happens to the fleet.
#[derive(Debug, Clone)]
enum Accident {
    Offline(usize),
    Online(usize),
    Restart,
    Away(i64),
    Pause,
    Resume,
    Rollback,
    Another,
    Drift(usize),
}

fn manner() -> impl Strategy<Value = Manner> {
    prop_oneof![
        8 => Just(Manner::Good),
        1 => Just(Manner::RollsBack("no".into())),
        1 => Just(Manner::Fails("no".into())),
        1 => Just(Manner::Rejects("no".into())),
        1 => Just(Manner::Silent),
        1 => Just(Manner::Lies),
        1 => Just(Manner::Vanishes),
        1 => Just(Manner::Unlinked),
        1 => Just(Manner::Mute),
        1 => (5..200_i64).prop_map(Manner::Regrets),
        1 => (10..200_i64).prop_map(Manner::Slow),
    ]
}

fn accident() -> impl Strategy<Value = Accident> {
    prop_oneof![
        4 => (0..NODES).prop_map(Accident::Offline),
        6 => (0..NODES).prop_map(Accident::Online),
        1 => Just(Accident::Restart),
        1 => (1..60_i64).prop_map(Accident::Away),
        1 => Just(Accident::Pause),
        3 => Just(Accident::Resume),
        1 => Just(Accident::Rollback),
        1 => Just(Accident::Another),
        1 => (0..NODES).prop_map(Accident::Drift),
    ]
}

fn any_terms() -> impl Strategy<Value = Terms> {
    let waves = prop_oneof![
        Just(vec![Size::Percent(100.0)]),
        Just(vec![Size::Nodes(1), Size::Percent(100.0)]),
        Just(vec![Size::Nodes(1), Size::Percent(25.0), Size::Percent(50.0), Size::Percent(100.0)]),
    ];
    let most = proptest::option::of(
        (1..4_u32, any::<bool>()).prop_map(|(nodes, per_site)| MaxUnavailable { nodes, per_site }),
    );
    let on_failure = prop_oneof![Just(OnFailure::Pause), Just(OnFailure::Stop), Just(OnFailure::Rollback)];
    let rate = proptest::option::of(prop_oneof![Just(6.0), Just(60.0), Just(1_000.0)]);
    (waves, most, on_failure, rate, 0..60_i64, 1..6_u32, prop_oneof![Just(0.0), Just(0.1), Just(0.3)])
        .prop_map(|(waves, max_unavailable, on_failure, rate, soak_s, min_executed, max_failures)| Terms {
            waves,
            max_unavailable,
            on_failure,
            rate,
            soak_ms: soak_s * 1_000,
            min_executed,
            max_failures,
            deadline_ms: DEADLINE_S * 1_000,
            timeout_ms: 100_000,
            offline_ms: 40_000,
            approval: Approval::No,
            ..terms()
        })
}

fn look(play: &Play, told: &mut BTreeSet<(String, u32)>) {
    for live in play.fleet.rollouts.all() {
        let (head, id) = (&live.head, live.head.spec.id.to_string());
        if let Some(most) = head.spec.terms.max_unavailable {
            let down = if most.per_site {
                live.down_by_site().values().copied().max().unwrap_or(0)
            } else {
                live.down()
            };
            assert!(down <= most.nodes, "{id}: {down} are down, {} may be", most.nodes);
        }
        for ((node, _), member) in live.members() {
            let first = member.told_ms.is_some() && told.insert((id.clone(), *node));
            let at = usize::from(member.wave);
            // Who is told for the first time is in a wave that runs, and all before it have passed.
            if first {
                assert!(head.waves[at].stage > Stage::Waiting, "{id}: told before its wave began");
                assert!(
                    head.waves[..at].iter().all(|wave| wave.stage == Stage::Passed),
                    "{id}: told before a gate"
                );
            }
            if member.stand == Stand::Waiting {
                assert!(member.command.is_none(), "{id}: told, and waits");
            }
        }
        if let (State::Running, Some(at)) = (head.state, live.current()) {
            let account = wave::account(live, at);
            let share = f64::from(account.bad) / f64::from(account.executed.max(1));
            let enough = account.executed >= head.spec.terms.min_executed.min(account.all);
            let begun = head.waves[at].stage > Stage::Waiting;
            assert!(
                !begun || !enough || share <= head.spec.terms.max_failures,
                "{id}: {account:?} is over the limit, and it goes on"
            );
        }
        let over_ms = head.deadline_ms();
        assert!(
            head.state.is_final() || play.now().wall_ms <= over_ms + 1_000,
            "{id}: no end by its deadline"
        );
        // The tallies that decide are those of the seats.
        let mut tally = std::collections::BTreeMap::new();
        live.members().values().for_each(|member| *tally.entry(member.stand).or_insert(0_u32) += 1);
        assert_eq!(head.tally(), tally, "{id}");
    }
    // One at a time at each node.
    for sim in play.sims.values() {
        let of = play.fleet.rollouts.of_node(sim.number);
        let busy = of.iter().filter(|live| {
            live.members()
                .iter()
                .any(|((node, _), member)| *node == sim.number && member.stand.is_under_way())
        });
        assert!(busy.count() <= 1, "two updates at once at {}", sim.id);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_the_limits_hold_and_it_ends(
        terms in any_terms(),
        manners in proptest::collection::vec(manner(), NODES),
        accidents in proptest::collection::vec((1..DEADLINE_S - 50, accident()), 0..24),
    ) {
        let mut play = Play::new();
        for (n, manner) in manners.into_iter().enumerate() {
            let (id, site) = (format!("n{n:02}"), ["berlin", "paris", "rome"][n % 3]);
            play.add(&id, site, ["aarch64", "x86_64"][n % 2], "picclaw", Some("1.1.0"));
            play.sims.get_mut(&id).unwrap().manner = manner;
            play.online(&id);
        }
        play.group();
        let id = "greeter-1.2.0-1";
        play.create(&play.wanted("1.2.0", &["any"], terms.clone(), Some(""))).unwrap();
        let mut accidents = accidents;
        accidents.sort_by_key(|(at, _)| *at);
        let mut told = BTreeSet::new();
        let mut accidents = accidents.into_iter().peekable();
        while play.second < 2 * DEADLINE_S + 60 {
            play.tick();
            look(&play, &mut told);
            while let Some((_, accident)) = accidents.next_if(|(at, _)| *at <= play.second) {
                let name = |n: usize| format!("n{n:02}");
                match accident {
                    Accident::Offline(n) => play.offline(&name(n)),
                    Accident::Online(n) => play.online(&name(n)),
                    Accident::Restart => play.restart(),
                    Accident::Away(seconds) => play.away(seconds),
                    Accident::Pause => drop(play.act(id, Act::Pause { reason: None }, "operator ada")),
                    Accident::Resume => drop(play.act(id, Act::Resume, "operator ada")),
                    Accident::Rollback => drop(play.act(id, Act::Rollback { reason: None }, "operator ada")),
                    Accident::Another => {
                        let wanted = play.wanted("1.3.0", &["any"], terms.clone(), Some(""));
                        drop(play.create(&wanted));
                    }
                    Accident::Drift(n) => play.run(&name(n), "1.0.0"),
                }
                play.group();
            }
        }
        for live in play.fleet.rollouts.all() {
            prop_assert!(live.head.state.is_final(), "{} did not end", live.head.spec.id);
            prop_assert_eq!(live.under_way(), 0);
        }
    }

    #[test]
    fn waves_are_the_same_every_time_and_have_each_kind_of_hardware(
        archs in proptest::collection::vec(0..3_usize, 30..200),
        sites in 1..5_usize,
    ) {
        let mut play = Play::new();
        for (n, arch) in archs.iter().enumerate() {
            let arch = ["aarch64", "x86_64", "armv7l"][*arch];
            play.add(&format!("n{n:03}"), &format!("s{}", n % sites), arch, "picclaw", Some("1.1.0"));
            play.online(&format!("n{n:03}"));
        }
        play.group();
        let waves = vec![Size::Percent(50.0), Size::Percent(100.0)];
        let wanted = play.wanted("1.2.0", &["any"], Terms { waves, ..terms() }, None);
        let draft = super::draft(&play.fleet, &wanted, play.now()).unwrap();
        prop_assert_eq!(&draft.plan, &super::draft(&play.fleet, &wanted, play.now()).unwrap().plan);
        let seats: Vec<_> = draft.plan.waves.iter().flatten().map(|placed| placed.seat.clone()).collect();
        prop_assert_eq!(seats.len(), archs.len());
        prop_assert_eq!(seats.iter().collect::<BTreeSet<_>>().len(), archs.len());
        // Half of all has half of each kind, to within one node.
        for (n, arch) in ["aarch64", "x86_64", "armv7l"].iter().enumerate() {
            let all = archs.iter().filter(|arch| **arch == n).count();
            let of = |placed: &&super::Placed| {
                play.sims.values().any(|sim| sim.number == placed.seat.0 && sim.arch == *arch)
            };
            let first = draft.plan.waves[0].iter().filter(of).count();
            prop_assert!((first * 2).abs_diff(all) <= 2, "{first} of {all} {arch}");
        }
    }
}

#[test]
fn what_is_confirmed_runs_it() {
    let mut play = Play::new();
    for n in 0..6 {
        let id = format!("n{n}");
        play.add(&id, "", "any", "", Some("1.1.0"));
        play.sims.get_mut(&id).unwrap().manner = if n % 2 == 0 { Manner::Lies } else { Manner::Good };
        play.online(&id);
    }
    play.group();
    let waves = vec![Size::Percent(100.0)];
    play.create(&play.wanted("1.2.0", &["any"], Terms { waves, max_failures: 1.0, ..terms() }, None))
        .unwrap();
    for _ in 0..400 {
        play.tick();
        let live = play.fleet.rollouts.get("greeter-1.2.0-1").unwrap();
        for ((node, _), member) in live.members() {
            let sim = play.sims.values().find(|sim| sim.number == *node).unwrap();
            let runs = sim.running.as_deref().map(digest);
            assert!(member.stand != Stand::Said(Said::Confirmed) || runs == live.digest(member));
        }
    }
    assert_eq!(play.fleet.rollouts.get("greeter-1.2.0-1").unwrap().head.waves[0].confirmed(), 3);
}
