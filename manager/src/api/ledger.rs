//! `ledger`: the account of every record.

use std::sync::Arc;

use axum::{
    Json,
    extract::State,
    response::{IntoResponse as _, Response},
};

use fleet_schemas::NodeId;

use super::{
    Api,
    problem::Refusal,
    query::{Params, no_node, node_id},
    shapes, view,
};
use crate::{
    core::{
        ledger::{Account, Standing},
        zones,
    },
    hub::Verified,
};

/// `GET ledger?node=&verify=`: with `verify=true` rows are counted instead of trusting marks.
pub(super) async fn get(State(api): State<Arc<Api>>, params: Params) -> Result<Response, Refusal> {
    params.only(&["node", "verify"])?;
    let verify = params.flag("verify")?;
    let node = params.text("node").map(node_id).transpose()?;
    if let Some(node) = &node
        && !api.hub.with_fleet(|fleet| fleet.nodes.contains_key(node))
    {
        return Err(no_node(node.as_str()));
    }
    Ok(Json(read(&api, node, verify).await?).into_response())
}

/// The accounts of one node or of all; with `verify` counted instead of believed.
pub(crate) async fn read(
    api: &Arc<Api>,
    node: Option<NodeId>,
    verify: bool,
) -> Result<shapes::Ledger, Refusal> {
    api.query(move |api| draw_up(api, node.as_ref(), verify)).await
}

fn draw_up(api: &Api, node: Option<&NodeId>, verify: bool) -> Result<shapes::Ledger, Refusal> {
    let verified = if verify { Some(api.hub.verify_ledger(node)?) } else { None };
    let accounts = match node {
        Some(node) => api.hub.ledger_of(node)?,
        None => api.hub.ledger()?,
    };
    let findings = verified.map(|verified| differences(&verified, &accounts));
    let balanced = accounts.iter().all(|account| account.state != Standing::Broken)
        && findings.as_ref().is_none_or(Vec::is_empty);
    let accounts = api.hub.with_fleet(|fleet| {
        accounts.iter().map(|account| view::account(account, zones::at(fleet, &account.node))).collect()
    });
    Ok(shapes::Ledger { balanced, accounts, findings })
}

/// What was counted and does not agree with the accounts. Nodes deliver and rows expire meanwhile: right is whatever
/// lies between the account before the count and the one after it.
fn differences(verified: &[Verified], after: &[Account]) -> Vec<shapes::Finding> {
    let mut findings = Vec::new();
    for Verified { account: before, found } in verified {
        let same = |account: &&Account| account.node == before.node && account.lane == before.lane;
        let (was, is) =
            (before.counters.stored, after.iter().find(same).map_or(0, |after| after.counters.stored));
        if !(was.min(is)..=was.max(is)).contains(found) {
            findings.push(shapes::Finding {
                node: before.node.to_string(),
                lane: before.lane.to_string(),
                expected: is,
                counted: *found,
            });
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use fleet_schemas::Lane;

    use super::*;
    use crate::core::ledger::{Counters, Sum, account};

    fn stored(stored: u64) -> Account {
        let counters = Counters { stored, ..Counters::default() };
        account(&NodeId::parse("edge-1").unwrap(), Lane::Event, Sum::default(), counters)
    }

    #[test]
    fn what_arrived_while_counting_is_no_difference() {
        for (before, found, after, wrong) in [
            (5, 5, 5, false),
            (5, 7, 9, false),
            (9, 7, 5, false),
            (5, 4, 5, true),
            (5, 6, 5, true),
            (5, 10, 9, true),
        ] {
            let verified = [Verified { account: stored(before), found }];
            assert_eq!(
                !differences(&verified, &[stored(after)]).is_empty(),
                wrong,
                "{before} {found} {after}"
            );
        }
    }
}
