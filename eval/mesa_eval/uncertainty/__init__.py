"""Say how sure a number is: bootstrap over units, intervals over seeds, tests corrected for their number."""
