//! Hears what the other brokers tell: of agents that came and went, of brokers, and of pushes to projects. Before it:
//! Redis' channels. After it: the routes, where a search may wait for just that.

use super::{
    Directory,
    census::count,
    schema::{EVENTS, News},
};
use crate::redis::Heard;
use std::sync::Arc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Until `stop`.
pub(super) async fn run(directory: Arc<Directory>, stop: CancellationToken) {
    let channels = vec![directory.keys.news(), EVENTS.to_vec()];
    let mut subscription = directory.redis.subscribe(channels);
    while let Some(heard) = stop.run_until_cancelled(subscription.next()).await {
        match heard {
            Heard::Connected => {
                directory.world.doubt(true);
                // Brokers may have come and gone meanwhile, and agents that searches wait for.
                directory.brokers_wanted.notify_one();
                directory.slots.each().iter().for_each(|slot| slot.news.notify_waiters());
            }
            Heard::Lost => {
                directory.world.doubt(false);
                directory.events.doubt();
            }
            Heard::Message { channel, payload } if channel == EVENTS => directory.events.hear(&payload),
            Heard::Message { payload, .. } => match News::parse(&payload) {
                Some(news) => directory.hear(news),
                None => {
                    tracing::debug!(length = payload.len(), "a message that no broker writes was ignored")
                }
            },
        }
    }
    directory.world.doubt(false);
}

impl Directory {
    fn hear(&self, news: News) {
        let (News::Came(_, peer) | News::Left(_, peer) | News::Broker(peer) | News::BrokerLeaves(peer)) =
            &news;
        if *peer == self.options.own {
            return;
        }
        count(&self.counters.news);
        let (now, ttl) = (Instant::now(), self.options.ttl);
        match news {
            News::Came(agent, peer) => {
                self.brokers.told(&peer, now + ttl);
                // For others nobody asked, nor does their moving away from here matter.
                let slot = self.slots.get(agent);
                let slot = slot.or_else(|| self.registry.holds(agent).then(|| self.slots.enter(agent)));
                if let Some(slot) = slot {
                    let number = self.world.number();
                    slot.route().came(peer, number, (ttl, now));
                    slot.news.notify_waiters();
                }
            }
            News::Left(agent, peer) => {
                if let Some(slot) = self.slots.get(agent) {
                    let number = self.world.number();
                    slot.route().left(peer, number, now);
                    slot.news.notify_waiters();
                }
            }
            News::Broker(peer) => self.brokers.came(&peer, now + ttl),
            News::BrokerLeaves(peer) => self.brokers.leaves(&peer, now),
        }
    }
}
