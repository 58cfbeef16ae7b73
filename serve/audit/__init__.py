"""The audit store: what was asked, what was answered, and who looked; encrypted and chained."""
