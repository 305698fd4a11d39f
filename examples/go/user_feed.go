package main

import (
	"log"
	"strconv"
	"time"

	restate "github.com/restatedev/sdk-go"
)

var pollInterval = func() time.Duration {
	ms, err := strconv.Atoi(environment("POLL_INTERVAL_MS", "5000"))
	if err != nil {
		log.Fatalf("POLL_INTERVAL_MS: %v", err)
	}
	return time.Duration(ms) * time.Millisecond
}()

// processPost publishes a post, waits until the social network has processed it, and adds it to the user's feed.
//
// There is one feed per user: posts of one user are processed one at a time, in order; users do not wait for each other.
func processPost(ctx restate.ObjectContext, post Post) (restate.Void, error) {
	user := restate.Key(ctx)

	postID, err := restate.Run(ctx, func(ctx restate.RunContext) (string, error) {
		return createPost(ctx, user, post)
	}, restate.WithName("create post"))
	if err != nil {
		return restate.Void{}, err
	}

	for {
		status, err := restate.Run(ctx, func(ctx restate.RunContext) (string, error) {
			return getStatus(ctx, postID)
		}, restate.WithName("get status"))
		if err != nil {
			return restate.Void{}, err
		}
		if status != "PENDING" {
			break
		}
		if err := restate.Sleep(ctx, pollInterval); err != nil {
			return restate.Void{}, err
		}
	}

	if err := restate.RunVoid(ctx, func(ctx restate.RunContext) error {
		return updateFeed(ctx, user, postID)
	}, restate.WithName("update feed")); err != nil {
		return restate.Void{}, err
	}

	feed, err := restate.Get[[]string](ctx, "feed")
	if err != nil {
		return restate.Void{}, err
	}
	restate.Set(ctx, "feed", append(feed, post.ID))
	return restate.Void{}, nil
}

// getFeed returns the ids of the posts that were processed, oldest first.
func getFeed(ctx restate.ObjectSharedContext, _ restate.Void) ([]string, error) {
	feed, err := restate.Get[[]string](ctx, "feed")
	if err != nil {
		return nil, err
	}
	if feed == nil {
		feed = []string{}
	}
	return feed, nil
}
