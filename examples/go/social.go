package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
)

// The social network that the user feed talks to: the service at SOCIAL_URL, or a stand-in that answers in this process.
var (
	socialURL    = os.Getenv("SOCIAL_URL")
	socialClient = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}}
)

type Post struct {
	ID      string `json:"id"`
	Content string `json:"content"`
}

func createPost(ctx context.Context, user string, post Post) (string, error) {
	if socialURL == "" {
		return fmt.Sprintf("post-%x", rand.Uint64()), nil
	}
	var created struct {
		PostID string `json:"postId"`
	}
	body := map[string]string{"user": user, "id": post.ID, "content": post.Content}
	err := request(ctx, http.MethodPost, "/posts", body, &created)
	return created.PostID, err
}

func getStatus(ctx context.Context, postID string) (string, error) {
	if socialURL == "" {
		return []string{"PENDING", "DONE"}[rand.IntN(2)], nil
	}
	var answer struct {
		Status string `json:"status"`
	}
	err := request(ctx, http.MethodGet, "/posts/"+url.PathEscape(postID)+"/status", nil, &answer)
	return answer.Status, err
}

func updateFeed(ctx context.Context, user, postID string) error {
	if socialURL == "" {
		return nil
	}
	return request(ctx, http.MethodPost, "/feeds/"+url.PathEscape(user), map[string]string{"postId": postID}, nil)
}

func request(ctx context.Context, method, path string, body, answer any) error {
	var encoded bytes.Buffer
	if body != nil {
		if err := json.NewEncoder(&encoded).Encode(body); err != nil {
			return err
		}
	}
	request, err := http.NewRequestWithContext(ctx, method, socialURL+path, &encoded)
	if err != nil {
		return err
	}
	request.Header.Set("content-type", "application/json")
	response, err := socialClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode >= 300 {
		return fmt.Errorf("%s %s: status %s", method, path, response.Status)
	}
	if answer == nil {
		return nil
	}
	return json.NewDecoder(response.Body).Decode(answer)
}
