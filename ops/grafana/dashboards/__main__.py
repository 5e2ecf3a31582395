"""Writes the dashboards to where Grafana's provisioning reads them:  python -m ops.grafana.dashboards"""

from __future__ import annotations

from ops.grafana.dashboards.all import FOLDER, written


def main() -> None:
    """Write every file anew, and remove those of dashboards that are no more."""
    files = written()
    for path in FOLDER.glob("*.json"):
        if path.name not in files:
            path.unlink()
    for name, text in files.items():
        (FOLDER / name).write_text(text)


if __name__ == "__main__":
    main()
