"""Grafana's dashboards as code: `scripts/grafana_dashboards.py` writes what these modules build."""
