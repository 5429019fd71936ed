"""The autoscaler: decides how many replicas a target has, and says why.

Owns: replica counts (through the `scale` subresource only) and the status of AutoscalingPolicy and
AutoscalingPolicyBinding. Refuses: pods, and everything else that a replica is made of.
Trap: a number that is missing is not a zero. Whatever is not known may add replicas, never take one away.
"""
