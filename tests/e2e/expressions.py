"""Checks PromQL expressions against series that exist: a name, label or value that nobody shows is a mistake."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping

import promql_parser
from prometheus_client.parser import text_string_to_metric_families
from promql_parser import AggregateExpr, BinaryExpr, Expr, Matcher, MatchOp, VectorSelector

Series = Mapping[str, Mapping[str, set[str]]]
"""By sample name: labels and the values that were seen."""

OF_PROMETHEUS: Series = {"ALERTS": {"alertname": set(), "alertstate": {"pending", "firing"}, "severity": set()}}
OF_SCRAPES = {"instance", "job"}
"""Labels that Prometheus adds to what it scrapes; their values are the operator's."""


def series_in(pages: Iterable[str]) -> Series:
    """Read what parts show."""
    found: dict[str, dict[str, set[str]]] = {}
    for page in pages:
        for family in text_string_to_metric_families(page):
            for sample in family.samples:
                labels = found.setdefault(sample.name, defaultdict(set))
                for label, value in sample.labels.items():
                    labels[label].add(value)
    return found


def mistakes(expression: str, series: Series) -> list[str]:
    """Tell what is wrong with an expression; dashboard variables in it count as anything."""
    found: list[str] = []
    used: set[str] = set()

    def visit(node: Expr) -> None:
        if isinstance(node, VectorSelector):
            labels = series.get(node.name or "")
            if labels is None:
                found.append(f"no series {node.name}")
                return
            used.update(labels)
            for matcher in node.matchers.matchers:
                found.extend(_wrong_matcher(node.name or "", matcher, labels))

    tree = promql_parser.parse(_without_variables(expression))
    promql_parser.walk(tree, visit)
    found += [f"no label {label}" for label in _grouped_by(tree) if label not in used | OF_SCRAPES]
    return found


def _wrong_matcher(name: str, matcher: Matcher, labels: Mapping[str, set[str]]) -> list[str]:
    if matcher.name in OF_SCRAPES or labels.get(matcher.name) == set():
        return []
    if matcher.name not in labels:
        return [f"{name} has no label {matcher.name}"]
    values = labels[matcher.name]
    if matcher.op in (MatchOp.Re, MatchOp.NotRe):
        wanted = [word for word in matcher.value.split("|") if not any(re.fullmatch(word, value) for value in values)]
    else:
        wanted = [matcher.value] if matcher.value not in values else []
    return [f"{name} has no {matcher.name} {word!r}" for word in wanted]


def _grouped_by(tree: Expr) -> list[str]:
    labels: list[str] = []

    def visit(node: Expr) -> None:
        if isinstance(node, AggregateExpr) and node.modifier:
            labels.extend(node.modifier.labels)
        if isinstance(node, BinaryExpr) and node.modifier:
            labels.extend(node.modifier.matching.labels if node.modifier.matching else [])
            labels.extend(node.modifier.group_labels or [])

    promql_parser.walk(tree, visit)
    return labels


def _without_variables(expression: str) -> str:
    return re.sub(r"\$(\w+|\{\w+\})", "any", re.sub(r"\$__(rate_interval|range|interval)", "5m", expression))
