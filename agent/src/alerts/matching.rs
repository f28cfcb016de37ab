//! Which policy a flow goes against, if one. Before it: `relay.rs`, which brings flows, and `policies.rs`, which keeps
//! policies. After it: the decision whether to say so. The rules are those of GitLab's agentk, which compares texts.

use super::{
    patterns::Pattern,
    policies::Policies,
    policy::{HttpRule, Part, Policy, Protocol, Section, Selector},
};
use percent_encoding::percent_decode_str;
use postern_wire::proto::flow::{Endpoint, Flow, Http, HttpHeader, TrafficDirection, layer4, layer7};

/// Labels of an end, and headers of a request, that are compared: pods and proxies have far fewer.
const MOST_LABELS: usize = 128;
/// Bytes of a label; Kubernetes has none that is longer.
const LONGEST_LABEL: usize = 512;

/// Whether it would take too long to compare this flow with all policies.
pub(crate) fn is_too_large(flow: &Flow) -> bool {
    let large = |labels: &[String]| {
        labels.len() > MOST_LABELS || labels.iter().any(|label| label.len() > LONGEST_LABEL)
    };
    let headers = http(flow).map_or(0, |http| http.headers.len());
    large(labels(flow.source.as_ref())) || large(labels(flow.destination.as_ref())) || headers > MOST_LABELS
}

/// The first policy, in the order of their names, that this flow goes against.
pub(crate) fn first<'a>(flow: &Flow, policies: &'a Policies) -> Option<&'a Policy> {
    policies.iter().find(|policy| goes_against(flow, policy))
}

fn goes_against(flow: &Flow, policy: &Policy) -> bool {
    let direction = flow.traffic_direction();
    let (source, destination) = (labels(flow.source.as_ref()), labels(flow.destination.as_ref()));
    let (own, peer) = match direction {
        TrafficDirection::Ingress => (destination, source),
        TrafficDirection::Egress => (source, destination),
        TrafficDirection::Unknown => return false,
    };
    if !policy.rules.iter().all(|rule| selects(&rule.endpoints, own)) {
        return false;
    }
    let sections = || policy.rules.iter().flat_map(move |rule| rule.sections(direction));
    let strange_peer = !sections().flat_map(|section| &section.peers).all(|selector| selects(selector, peer));
    strange_peer || !port_is_named(flow, sections()) || !http_fits(flow, sections())
}

fn labels(end: Option<&Endpoint>) -> &[String] {
    end.map_or(&[], |end| &end.labels)
}

/// Each part of a selector is found in some label of the endpoint's.
fn selects(selector: &Selector, labels: &[String]) -> bool {
    // A label without a value is written without the sign too.
    let found = |text: &String| {
        labels.iter().any(|label| {
            let without = text.strip_suffix('=').filter(|_| !label.contains('='));
            label.contains(text.as_str()) || without.is_some_and(|key| label.ends_with(key))
        })
    };
    selector.0.iter().all(|part| match part {
        Part::In(texts) => texts.iter().any(found),
        Part::NotIn(texts) => !texts.iter().any(found),
    })
}

fn port_is_named<'a>(flow: &Flow, mut sections: impl Iterator<Item = &'a Section>) -> bool {
    let (port, protocol) = match flow.l4.as_ref().and_then(|l4| l4.protocol.as_ref()) {
        Some(layer4::Protocol::Tcp(tcp)) => (tcp.destination_port, Protocol::Tcp),
        Some(layer4::Protocol::Udp(udp)) => (udp.destination_port, Protocol::Udp),
        _ => return false,
    };
    sections.any(|section| section.ports.iter().any(|named| named.is(port, protocol)))
}

/// Whether there are no rules about HTTP or one of them fits.
fn http_fits<'a>(flow: &Flow, sections: impl Iterator<Item = &'a Section>) -> bool {
    let mut rules = sections.flat_map(|section| &section.http).peekable();
    if rules.peek().is_none() {
        return true;
    }
    let Some(http) = http(flow) else {
        return false;
    };
    let place = host_and_path(&http.url);
    rules.any(|rule| fits(rule, http, place.as_ref().map(|(host, path)| (*host, path.as_str()))))
}

fn http(flow: &Flow) -> Option<&Http> {
    match flow.l7.as_ref()?.record.as_ref()? {
        layer7::Record::Http(http) => Some(http),
        _ => None,
    }
}

fn fits(rule: &HttpRule, http: &Http, place: Option<(&str, &str)>) -> bool {
    if !rule.headers.iter().all(|wanted| has_header(&http.headers, wanted)) {
        return false;
    }
    if rule.patterns().into_iter().all(Pattern::is_empty) {
        return true;
    }
    place.is_some_and(|(host, path)| {
        rule.host.fits(host) && rule.path.fits(path) && rule.method.fits(&http.method)
    })
}

fn has_header(headers: &[HttpHeader], wanted: &str) -> bool {
    let Some((name, value)) = wanted.split_once(':') else {
        return false;
    };
    let value = value.trim_start_matches(' ');
    headers.iter().any(|header| header.key == name && header.value == value)
}

/// Host with port, and path without escapes, of a URL that may lack its beginning. `None`: not a URL.
fn host_and_path(url: &str) -> Option<(&str, String)> {
    let end = url.find(['?', '#']).unwrap_or(url.len());
    let url = &url[..end];
    let rest = url.split_once("://").map(|(_, rest)| rest).or_else(|| url.strip_prefix("//"));
    let (host, path) = match rest {
        None => ("", url),
        Some(rest) => rest.split_at(rest.find('/').unwrap_or(rest.len())),
    };
    let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
    let path = percent_decode_str(path).decode_utf8().ok()?.into_owned();
    Some((host, path))
}

#[cfg(test)]
mod tests;
