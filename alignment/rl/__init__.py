"""Learning from the policy's own replies: PPO, its kin without a critic, and what other online methods take of them.

In reading order, from `tasks/ppo.py` down; a file imports only files above it:

    reference        the frozen reference: a copy, or the base under an adapter
    rewards          what a reply is worth: scorers, how they are combined, penalties
    roles            the models of PPO's four roles, and the engines that train two of them
    mismatch         how far an engine that drew the replies is from the model that learns from them
    rollouts         a step's prompts, the replies to them, and their scores
    on_policy        what the loop asks of every online method, PPO, online DPO or one of your own
    groups           GRPO's part: the replies to one prompt compared with each other, where there is no critic
    experience       replies and scores to log-probs, KL, rewards, values and advantages
    objectives       what actor and critic minimise
    ptx              other texts that the actor learns from on the side
    update           epochs over the mini-batches of experience
    kl_control       the weight of the KL over a run
    moving_average   of the actor's weights
    state            these two, which a checkpoint holds
    memory           what the models hold, said before the first step
"""
