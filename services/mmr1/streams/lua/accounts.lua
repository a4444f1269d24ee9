-- Everything the ledger is made of, at one instant: a look that costs the same however many items there are.
return accounts()
