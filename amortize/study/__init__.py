"""From a spec to a report: settings, stages that resume, the ledger of gaps."""
