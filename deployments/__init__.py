"""Where and when flows run: deployments, automations, pools, recipes, the demo.

Not for what a flow does: flows/.
"""
